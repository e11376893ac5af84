from __future__ import annotations

import pytest

from tests.conftest import Unchanged
from tests.support import guests
from tests.support.oci import write_program_image
from tests.support.project import Project, program

MEMORY = "the guest was killed: it went over its memory limit"
PROCESSES = "the guest went over a limit: more than 256 processes"
STDOUT = "the guest went over a limit: more than 1 MiB on standard output"
STDERR = "the guest went over a limit: more than 1 MiB on standard error"
MIB = 1 << 20


def _memory_hog_in_child(platform: str) -> bytes:
    return guests.memory_hog(platform, in_child=True)


def _flood_stderr(platform: str) -> bytes:
    return guests.flood(platform, stream=2)


@pytest.mark.parametrize(
    ("guest", "message", "status"),
    [
        (guests.memory_hog, MEMORY, 137),
        (_memory_hog_in_child, MEMORY, 0),  # PID 1 waits for its child and exits with 0
        (guests.fork_bomb, PROCESSES, 137),
        (guests.flood, STDOUT, 137),
        (_flood_stderr, STDERR, 137),
    ],
)
def test_limit_kills_guest(
    docker_project: Project, unchanged: Unchanged, guest: guests.Guest, message: str, status: int
) -> None:
    name = write_program_image(
        docker_project.folder, *((platform, guest(platform)) for platform in guests.PLATFORMS)
    )
    with unchanged():
        report = docker_project.json("run-emulated", name, "--jobs=1", expect=5)
    for result in report["results"]:
        assert (result["outcome"], result["message"]) == ("failed", message), result["platform"]
        assert result["exit_code"] == status
        assert max(len(result["stdout"]), len(result["stderr"])) <= MIB


def test_limits_of_shell_commands(docker_project: Project, unchanged: Unchanged) -> None:
    docker_project.write({"Dockerfile": "FROM alpine:latest\n"})
    docker_project.task("build-multiarch", "--platform=linux/arm64")
    cases = {
        guests.MEMORY_HOG: MEMORY,
        guests.MEMORY_HOG_IN_CHILD: MEMORY,
        guests.FORK_BOMB: PROCESSES,
        guests.FLOOD: STDOUT,
        guests.FLOOD_STDERR: STDERR,
    }
    for command, message in cases.items():
        with unchanged():
            (result,) = docker_project.json("run-emulated", f"--command=sh -c '{command}'", expect=5)[
                "results"
            ]
        assert (result["outcome"], result["message"]) == ("failed", message), command


def test_output_up_to_the_limit(docker_project: Project, unchanged: Unchanged) -> None:
    docker_project.write({"Dockerfile": "FROM alpine:latest\n"})
    docker_project.task("build-multiarch", "--platform=linux/amd64")
    command = f"head -c {MIB} /dev/zero | tr '\\\\0' x; head -c {MIB} /dev/zero | tr '\\\\0' y >&2"
    with unchanged():
        (result,) = docker_project.json("run-emulated", f'--command=sh -c "{command}"')["results"]
    assert result["outcome"] == "passed"
    assert (result["stdout"], result["stderr"]) == ("x" * MIB, "y" * MIB)


def test_limits_are_per_guest(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(
        docker_project.folder,
        ("linux/amd64", guests.flood("linux/amd64")),
        ("linux/arm64", program("linux/arm64")),
        ("linux/s390x", program("linux/s390x")),
    )
    with unchanged():
        report = docker_project.json("run-emulated", name, expect=5)
    assert [result["outcome"] for result in report["results"]] == ["failed", "passed", "passed"]
