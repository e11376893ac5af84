from __future__ import annotations

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import TEN, Unchanged
from tests.failures.run.test_wrong_binary_is_not_run import _events
from tests.integration.test_runs import image
from tests.support import crashers
from tests.support.project import Project

NATIVE = ("linux/amd64", "linux/386")  # for an engine on amd64
EMULATED = tuple(name for name in TEN if name not in NATIVE)


@pytest.fixture
def docker(engine: Engine, project: Project) -> Project:
    assert engine.version
    return project.with_env(INVOKE_BUILDKIT_RUNNER="docker")


def test_a_crash_of_qemu_itself_is_told_with_its_version_and_not_tried_again(
    engine: Engine, docker: Project, unchanged: Unchanged
) -> None:
    name = image(docker, *((platform, crashers.internal_fault(platform)) for platform in EMULATED))
    with unchanged(), _events(engine) as seen:
        report = docker.json("run-emulated", name, "--timeout=30", expect=1)
    rows = {row["platform"]: row for row in report["results"]}
    assert list(rows) == list(EMULATED)
    for platform, row in rows.items():
        assert (row["outcome"], row["exit_code"]) == ("emulator-crash", crashers.STATUS), platform
        assert crashers.SAYS in row["message"]
        assert row["message"].startswith("the emulator crashed: qemu-")
        emulator = row["emulator"]
        assert emulator["version"]
        assert row["message"].endswith(f"({emulator['path']}, version {emulator['version']})")
    assert sum(event["Action"] == "start" for event in seen) == len(EMULATED)


def test_where_no_emulator_is_the_same_program_is_no_crash_of_one(
    docker: Project, unchanged: Unchanged
) -> None:
    # The kernel gives EFAULT; the code then runs off its end, over zeros, into a page that is not there.
    name = image(docker, ("linux/amd64", crashers.internal_fault("linux/amd64")))
    with unchanged():
        (row,) = docker.json("run-emulated", name, expect=1)["results"]
    assert (row["outcome"], row["emulator"]) == ("failed", None)


def test_a_crash_of_qemu_without_a_word_is_a_failure_with_its_status(
    docker: Project, unchanged: Unchanged
) -> None:
    name = image(docker, ("linux/arm64", crashers.silent_fault("linux/arm64")))
    with unchanged():
        (row,) = docker.json("run-emulated", name, expect=1)["results"]
    assert (row["exit_code"], row["stderr"]) == (crashers.STATUS, "")
    assert str(crashers.STATUS) in row["message"]
