"""Usage errors: the message names the mistake and the correction, and nothing is left behind."""

from __future__ import annotations

import sys

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.project import TASKS, Project

INVOKE = (sys.executable, "-m", "invoke")


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [("linux/amr64", "linux/arm64"), ("linux/mips64", "linux/mips64le"), ("s390", "linux/s390x")],
)
def test_platform_typo(project: Project, unchanged: Unchanged, typo: str, nearest: str) -> None:
    project.write({"Dockerfile": "FROM scratch\n"})
    with unchanged():
        done = project.task("build-multiarch", f"--platform=linux/amd64,{typo}", expect=2)
    assert typo in done.stderr
    assert f"did you mean {nearest}" in done.stderr


def test_missing_dockerfile(project: Project, unchanged: Unchanged) -> None:
    with unchanged():
        done = project.task("build-multiarch", expect=2)
    assert "there is no Dockerfile" in done.stderr
    assert "try: name another Dockerfile by -f FILE" in done.stderr


def test_missing_context(project: Project, unchanged: Unchanged) -> None:
    with unchanged():
        done = project.task("build-multiarch", "--context=nowhere", expect=2)
    assert "'nowhere'" in done.stderr


@pytest.mark.parametrize(
    ("files", "env", "source"),
    [
        ({"pyproject.toml": "[tool.buildkit-tasks]\nplatform = ['linux/amd64']\n"}, {}, "pyproject.toml"),
        ({}, {"INVOKE_BUILDKIT_PLATFORM": "linux/amd64"}, "environment"),
    ],
)
def test_unknown_settings_key(
    project: Project, unchanged: Unchanged, files: dict[str, str], env: dict[str, str], source: str
) -> None:
    project.write({"Dockerfile": "FROM scratch\n", **files})
    with unchanged():
        done = project.with_env(**env).task("build-multiarch", expect=2)
    assert source in done.stderr
    assert "did you mean 'platforms'?" in done.stderr


def test_unknown_invoke_key(project: Project, unchanged: Unchanged) -> None:
    tasks = "from buildkit_tasks.tasks import ns\n"
    project.write({"tasks.py": tasks, "invoke.yaml": "buildkit: {platfroms: [linux/amd64]}\n"})
    with unchanged():
        done = project.command(*INVOKE, "build-multiarch")
    assert done.code == 2, done.stderr
    assert "unknown key 'platfroms'" in done.stderr
    assert "did you mean 'platforms'?" in done.stderr


def test_failing_step_status(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    dockerfile = 'FROM alpine:latest\nRUN test "$(uname -m)" != armv7l || exit 9\n'
    project.write({"Dockerfile": dockerfile})
    with unchanged():
        done = project.task("build-multiarch", "--platform=linux/arm64,linux/arm/v6", expect=1)
    error = done.stderr.rpartition("error: ")[2]
    assert error.startswith("linux/arm/v6: build failed: ")
    assert "exit code: 9" in error


def test_traceback_needs_debug(project: Project) -> None:
    done = project.command(*TASKS, "build-multiarch", "--debug")
    assert done.code == 2
    assert "Traceback" in done.stderr
    project.task("build-multiarch", expect=2)


@pytest.mark.parametrize(
    ("argv", "option", "hint"),
    [
        (("setup-builder", "--keep-state"), "--keep-state", "--recreate"),
        (("build-multiarch", "--no-verify"), "--no-verify", "--push"),
        (("build-multiarch", "--expect=x", "--cpu=floor"), "--expect, --cpu", "--push"),
        (
            ("build-multiarch", "--split", "--platform=386", "-tr.example.org/x", "--parity=fail"),
            "--parity",
            "--push",
        ),
        (("arch-matrix", "--no-verify"), "--no-verify", "--push"),
    ],
)
def test_useless_option(
    project: Project, unchanged: Unchanged, argv: tuple[str, ...], option: str, hint: str
) -> None:
    project.write({"Dockerfile": "FROM scratch\n"})
    with unchanged():
        done = project.task(*argv, expect=2)
    assert option in done.stderr
    assert hint in done.stderr.partition("try:")[2]


@pytest.mark.parametrize("task", ["arch-matrix", "build-multiarch", "setup-builder"])
@pytest.mark.parametrize("images", ["", '[[tool.buildkit-tasks.image]]\nname = "app"\ntags = ["app:1"]\n'])
def test_dry_run_without_engine(project: Project, task: str, images: str) -> None:
    project.write({"Dockerfile": "FROM scratch\n", "pyproject.toml": images})
    unreachable = project.with_env(DOCKER_HOST="tcp://127.0.0.1:1", INVOKE_BUILDKIT_ENGINE="system")
    document = unreachable.json(task, "--dry-run", expect=3)
    assert (document["ok"], document["exit_code"]) == (False, 3)
    assert "no Docker daemon answers" in document["error"]
