from __future__ import annotations

import pytest

from buildkit_tasks.engine import Engine
from tests.conftest import Unchanged
from tests.images import Memory, add_platform, make_tar, write_archive
from tests.project import HOPELESS, Project, program

# The outcomes that a hang, a wrong program and a fatal signal have stand in tests/faults, rows 49, 51, 57.


def image(project: Project, *rows: tuple[str, bytes]) -> str:
    """An archive with one program for each platform."""
    memory = Memory()
    entries = [
        add_platform(memory, name, [make_tar({"main": data, "tmp/x": b""})], Entrypoint=["/main"])
        for name, data in rows
    ]
    memory.index(entries)
    return str(write_archive(memory, project.folder / "image.tar"))


def test_each_failure_has_its_own_outcome(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    name = image(
        project,
        ("linux/amd64", program("linux/amd64")),
        ("linux/arm64", program("linux/arm64", 7)),
        ("linux/riscv64", program("linux/riscv64", code=HOPELESS)),
        ("linux/s390x", program("linux/ppc64le")),
    )
    with unchanged():
        report = project.json("run-emulated", name, expect=1)
    outcomes = {row["platform"]: row["outcome"] for row in report["results"]}
    assert outcomes == {
        "linux/amd64": "passed",
        "linux/arm64": "failed",
        "linux/riscv64": "illegal-instruction",
        "linux/s390x": "wrong-arch",
    }
    arm64 = report["results"][1]
    assert (arm64["exit_code"], arm64["message"]) == (7, "exit status 7, expected 0")


def test_an_expected_status_other_than_nothing_passes(engine: Engine, project: Project) -> None:
    assert engine.version
    name = image(
        project, ("linux/amd64", program("linux/amd64", 7)), ("linux/arm64", program("linux/arm64", 7))
    )
    report = project.json("run-emulated", name, "--expect-exit=7")
    assert [row["exit_code"] for row in report["results"]] == [7, 7]


def test_output_that_does_not_match_fails(engine: Engine, project: Project) -> None:
    assert engine.version
    name = image(project, ("linux/arm64", program("linux/arm64")))
    report = project.json("run-emulated", name, "--expect=hello", expect=1)
    assert [row["outcome"] for row in report["results"]] == ["failed"]
    assert "does not match" in report["results"][0]["message"]


def test_a_platform_that_the_image_has_not_is_a_failure(engine: Engine, project: Project) -> None:
    assert engine.version
    name = image(project, ("linux/arm64", program("linux/arm64")))
    report = project.json("run-emulated", name, "--platform=linux/arm64,linux/s390x", expect=1)
    assert [row["outcome"] for row in report["results"]] == ["passed", "failed"]
    assert report["results"][1]["message"] == "linux/s390x is not in the image, which holds linux/arm64"


@pytest.mark.parametrize("name", ["missing.tar", "docker-daemon:no-such/image:1"])
def test_an_image_that_is_not_there_is_a_usage_error(engine: Engine, project: Project, name: str) -> None:
    assert engine.version
    done = project.task("run-emulated", name, expect=2)
    assert name.removeprefix("docker-daemon:") in done.stderr
