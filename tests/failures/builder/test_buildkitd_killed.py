from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.engine.nodes import RunningTask, TemporaryBuilder, docker, sleep_program
from tests.support.project import Project

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY sleep /sleep\nRUN ["/sleep"]\n'
DETECTION_SECONDS = 30.0


def find_buildkitd(builder: TemporaryBuilder) -> int:
    """Return the pid of buildkitd, which is a child of the container's init."""
    pid = docker(builder.engine, "inspect", "--format={{.State.Pid}}", builder.container)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    pids = [pid, *children]
    (buildkitd,) = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "buildkitd"]
    return int(buildkitd)


def test_buildkitd_killed_during_build(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings(), "Dockerfile": DOCKERFILE})
    project.write({"sleep": sleep_program(AMD64, 60)})
    project.task("setup-builder")
    build = RunningTask(project, "build-multiarch", "--progress=plain")
    build.wait_for('[2/2] RUN ["/sleep"]')
    os.kill(find_buildkitd(builder), signal.SIGKILL)
    done = build.wait(DETECTION_SECONDS)
    assert done.code == 3
    assert f"the builder '{builder.name}' was lost" in done.stderr
    assert "the same command again" in done.stderr
    assert list((project.folder / "dist").glob("*")) == []

    project.write({"sleep": sleep_program(AMD64, 0)})
    assert project.json("build-multiarch")["ok"]
    assert (len(builder.containers()), len(builder.volumes())) == (1, 1)


def test_build_while_buildkit_restarts(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings(), "Dockerfile": DOCKERFILE})
    project.write({"sleep": sleep_program(AMD64, 0)})
    project.task("setup-builder")
    for _ in range(5):
        os.kill(find_buildkitd(builder), signal.SIGKILL)
        assert project.json("build-multiarch")["ok"]
