"""Outcomes of runs with the sandbox and with Docker.

``tests/failures/run`` has those of hangs, wrong binaries and fatal signals.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.qemu_env import QEMU_ENV_VARS
from tests.conftest import Unchanged
from tests.failures.private_binfmt import qemu
from tests.support import census, crashers, guests
from tests.support.oci import write_program_image
from tests.support.project import ILLEGAL_INSTRUCTION, Project, program


def test_outcomes(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    name = write_program_image(
        project.folder,
        ("linux/amd64", program("linux/amd64")),
        ("linux/arm64", program("linux/arm64", 7)),
        ("linux/riscv64", program("linux/riscv64", code=ILLEGAL_INSTRUCTION)),
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


def test_expected_exit_status(engine: Engine, project: Project) -> None:
    assert engine.version
    name = write_program_image(
        project.folder, ("linux/amd64", program("linux/amd64", 7)), ("linux/arm64", program("linux/arm64", 7))
    )
    report = project.json("run-emulated", name, "--expect-exit=7")
    assert [row["exit_code"] for row in report["results"]] == [7, 7]


def test_output_mismatch(engine: Engine, project: Project) -> None:
    assert engine.version
    name = write_program_image(project.folder, ("linux/arm64", program("linux/arm64")))
    report = project.json("run-emulated", name, "--expect=hello", expect=1)
    assert [row["outcome"] for row in report["results"]] == ["failed"]
    assert "does not match" in report["results"][0]["message"]


def test_missing_platform(engine: Engine, project: Project) -> None:
    assert engine.version
    name = write_program_image(project.folder, ("linux/arm64", program("linux/arm64")))
    report = project.json("run-emulated", name, "--platform=linux/arm64,linux/s390x", expect=1)
    assert [row["outcome"] for row in report["results"]] == ["passed", "failed"]
    message, hint = report["results"][1]["message"].split("\n  try: ")
    assert message == "linux/s390x is not in the image, which holds linux/arm64"
    assert hint.endswith(" build-multiarch --platform=linux/s390x")


@pytest.mark.parametrize("name", ["missing.tar", "docker-daemon:no-such/image:1"])
def test_missing_image(engine: Engine, project: Project, name: str) -> None:
    assert engine.version
    done = project.task("run-emulated", name, expect=2)
    assert name.removeprefix("docker-daemon:") in done.stderr


@pytest.fixture
def docker_project(engine: Engine, project: Project) -> Project:
    """A repository whose images are run by Docker."""
    assert engine.version
    return project.with_env(INVOKE_BUILDKIT_RUNNER="docker")


EMULATED = tuple(
    name for name in guests.NEWER_INSTRUCTION_PLATFORMS if name not in ("linux/amd64", "linux/386")
)


def test_floor_cpu_finds_v7_binary(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(
        docker_project.folder, *((each, guests.newer_instruction(each)) for each in EMULATED)
    )
    with unchanged():
        ran = docker_project.json("run-emulated", name)
        floor = docker_project.json("run-emulated", name, "--cpu=floor", expect=1)
    assert [row["outcome"] for row in ran["results"]] == ["passed"] * len(EMULATED)
    for row in floor["results"]:
        cpu = Platform.parse(row["platform"]).baseline_cpu
        assert (row["outcome"], row["exit_code"]) == ("illegal-instruction", 132), row["platform"]
        assert row["emulator"]["cpu"] == cpu
        assert cpu in row["message"]


def test_floor_cpu_passes(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(docker_project.folder, *((each, program(each)) for each in EMULATED))
    with unchanged():
        report = docker_project.json("run-emulated", name, "--cpu=floor")
    assert [row["outcome"] for row in report["results"]] == ["passed"] * len(EMULATED)


def test_unknown_cpu_model(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(docker_project.folder, ("linux/arm64", program("linux/arm64")))
    with unchanged():
        done = docker_project.task("run-emulated", "--json", name, "--cpu=cortex-x99", expect=2)
    assert "linux/arm64: QEMU has no CPU model 'cortex-x99'; " in done.stderr
    assert "qemu-aarch64 -cpu help" in done.stderr


def test_unusable_cpu_model(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(docker_project.folder, ("linux/s390x", program("linux/s390x")))
    with unchanged():
        done = docker_project.task("run-emulated", "--json", name, "--cpu=z13", expect=1)
    (row,) = done.document["results"]
    assert row["outcome"] == "not-registered"
    assert row["message"].startswith("linux/s390x: QEMU does not run as CPU model 'z13' (qemu-s390x: ")
    assert "qemu-s390x -cpu help" in row["message"]


def test_native_run_ignores_cpu_model(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(docker_project.folder, ("linux/amd64", program("linux/amd64")))
    with unchanged():
        done = docker_project.task("run-emulated", "--json", name, "--cpu=qemu64", expect=1)
    (row,) = done.document["results"]
    assert (row["outcome"], row["exit_code"]) == ("not-registered", None)
    assert "--runner=sandbox" in row["message"]


def test_image_cannot_control_qemu(docker_project: Project, unchanged: Unchanged) -> None:
    # With QEMU_VERSION set, QEMU prints its version and exits with 0 without running the program.
    env = ("QEMU_VERSION=1", "QEMU_CPU=no-such-model", "QEMU_STRACE=1")
    name = write_program_image(docker_project.folder, ("linux/arm64", program("linux/arm64", 7)), env=env)
    with unchanged():
        (row,) = docker_project.json("run-emulated", name, "--expect-exit=7")["results"]
    assert (row["outcome"], row["stdout"], row["stderr"]) == ("passed", "", "")


def test_qemu_variables_are_known(engine: Engine) -> None:
    assert engine.version
    done = subprocess.run([str(qemu()), "--help"], capture_output=True, text=True, check=False, timeout=30)
    variables = set(re.findall(r"^-\S.*?\s(QEMU_[A-Z_]+)\s", done.stdout, re.MULTILINE))
    assert len(variables) > 15
    assert variables <= set(QEMU_ENV_VARS)


AMD64, ARM64 = "linux/amd64", "linux/arm64"


@pytest.mark.parametrize(
    ("expected", "programs"),
    [
        (("passed", "", 0), [(AMD64, program(AMD64)), (ARM64, program(ARM64))]),
        (("emulator-crash", "version", 1), [(ARM64, crashers.internal_fault(ARM64))]),
        (("failed", "memory limit", 5), [(AMD64, guests.memory_hog(AMD64))]),
        (("failed", "more than 256 processes", 5), [(ARM64, guests.fork_bomb(ARM64))]),
        (("failed", "more than 1 MiB", 5), [(AMD64, guests.flood(AMD64)), (ARM64, guests.flood(ARM64))]),
        (("timeout", "more than 5 s", 124), [(ARM64, guests.ignore_signals(ARM64))]),
        (("wrong-arch", "made for amd64", 1), [(ARM64, program(AMD64))]),
    ],
    ids=["passed", "crash", "memory", "processes", "output", "timeout", "wrong-arch"],
)
def test_graphdriver_store_outcomes(
    docker_project: Project,
    graph_engine: Engine,
    expected: tuple[str, str, int],
    programs: list[tuple[str, bytes]],
) -> None:
    outcome, message, status = expected
    project = docker_project.with_env(**graph_engine.env)
    before = census.take(graph_engine, project.folder.parent)
    image = write_program_image(project.folder, *programs)
    report = project.json("run-emulated", image, "--timeout=5", expect=status)
    assert [row["outcome"] for row in report["results"]] == [outcome] * len(programs)
    assert all(message in row["message"] and row["digest"] for row in report["results"])
    assert before.differences(census.take(graph_engine, project.folder.parent)) == {}
