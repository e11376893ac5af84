from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import Going, OwnBuilder, docker, own_builder, sleeper
from tests.support.project import Project

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY sleep /sleep\nRUN ["/sleep"]\n'
NOTICED = 30.0  # seconds


@pytest.fixture
def ours(engine: Engine, buildkit_image: str) -> Iterator[OwnBuilder]:
    with own_builder(engine, buildkit_image) as builder:
        yield builder


def buildkitd(builder: OwnBuilder) -> int:
    """The pid of the daemon in the builder's container, which an init has started there."""
    pid = docker(builder.engine, "inspect", "--format={{.State.Pid}}", builder.container)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    (found,) = [
        each for each in (pid, *children) if Path(f"/proc/{each}/comm").read_text().strip() == "buildkitd"
    ]
    return int(found)


def test_it_is_noticed_and_healed_by_the_next_run(ours: OwnBuilder, project: Project) -> None:
    project.write({"pyproject.toml": ours.settings(), "Dockerfile": DOCKERFILE, "sleep": sleeper(AMD64, 60)})
    project.task("setup-builder")
    build = Going(project, "build-multiarch", "--progress=plain")
    build.until('[2/2] RUN ["/sleep"]')
    os.kill(buildkitd(ours), signal.SIGKILL)
    done = build.end(NOTICED)
    assert done.code == 3
    assert f"the builder '{ours.name}' was lost" in done.stderr
    assert "the same command again" in done.stderr
    assert list((project.folder / "dist").glob("*")) == []

    project.write({"sleep": sleeper(AMD64, 0)})
    assert project.json("build-multiarch")["ok"]
    assert (len(ours.containers()), len(ours.volumes())) == (1, 1)
