"""Every outcome of a run, each with a real guest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Unchanged
from tests.sandbox.conftest import BusyboxImage
from tests.support import crashers, guests
from tests.support.elf import elf
from tests.support.oci import MemoryImage, add_platform, make_tar, write_archive
from tests.support.project import ILLEGAL_INSTRUCTION, Project, program

EMULATED = "linux/arm64"


def image(directory: Path, platform: str, data: bytes, command: str = "/main") -> str:
    """Return the name of an archive with one program for one platform."""
    memory = MemoryImage()
    memory.set_index([add_platform(memory, platform, [make_tar({"main": data})], Cmd=[command])])
    return f"oci-archive:{write_archive(memory, directory / 'image.tar')}"


def run(project: Project, name: str, *options: str, expect: int = 1) -> dict[str, Any]:
    """Run an image of one platform in the sandbox and return the result."""
    report = project.json("run-emulated", name, "--runner=sandbox", *options, expect=expect)
    (result,) = report["results"]
    assert result["runner"] == "sandbox"
    return dict(result)


@pytest.mark.parametrize("platform", ["linux/amd64", EMULATED, "linux/s390x", "linux/mips64le"])
def test_passed(project: Project, tmp_path: Path, platform: str) -> None:
    result = run(project, image(tmp_path, platform, program(platform, 3)), "--expect-exit=3", expect=0)
    assert (result["outcome"], result["exit_code"]) == ("passed", 3)
    assert result["emulated"] == (platform != "linux/amd64")
    if result["emulated"]:
        assert result["emulator"]["path"].rpartition("/")[2].startswith("qemu-")
        assert result["emulator"]["version"][0].isdigit()


@pytest.mark.parametrize("platform", ["linux/amd64", EMULATED])
def test_unexpected_status(project: Project, tmp_path: Path, platform: str) -> None:
    result = run(project, image(tmp_path, platform, program(platform, 3)))
    assert (result["outcome"], result["message"]) == ("failed", "exit status 3, expected 0")


def test_unexpected_output(project: Project, busybox_image: BusyboxImage) -> None:
    result = run(project, busybox_image(EMULATED, Cmd=["/bin/echo", "moin"]), "--expect=^hello$")
    assert (result["outcome"], result["stdout"]) == ("failed", "moin\n")


def test_wrong_architecture(project: Project, tmp_path: Path) -> None:
    result = run(project, image(tmp_path, EMULATED, program("linux/amd64")))
    assert (result["outcome"], result["exit_code"], result["seconds"]) == ("wrong-arch", None, 0)
    assert "/main is made for amd64, not for arm64" in result["message"]


def test_missing_program(project: Project, tmp_path: Path) -> None:
    result = run(project, image(tmp_path, EMULATED, program(EMULATED), "/other"))
    assert (result["outcome"], result["emulator"]) == ("failed", None)
    assert "'/other' is not in the image" in result["message"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "(exec format error): it is empty"),
        (b"echo hello\n", "(exec format error): no ELF header and no '#!' line"),
        (b"#!/bin/sh\r\n", "/main cannot start: its first line has a Windows line ending"),
        (b"#!/bin/bash\n", "the interpreter of /main: '/bin/bash' is not in the image"),
        (b"\x7fELF\x02\x01\x01", "truncated ELF header"),
    ],
)
def test_unstartable_program(project: Project, tmp_path: Path, data: bytes, message: str) -> None:
    result = run(project, image(tmp_path, EMULATED, data))
    assert (result["outcome"], result["exit_code"], result["emulated"]) == ("failed", None, False)
    assert message in result["message"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (program("linux/amd64")[:70], "Exec format error: it is made for linux/amd64, and damaged"),
        (elf("linux/amd64", interpreter="/gone"), "/main cannot start: its loader /gone is not in the image"),
    ],
)
def test_kernel_refuses_program(project: Project, tmp_path: Path, data: bytes, message: str) -> None:
    result = run(project, image(tmp_path, "linux/amd64", data))
    assert (result["outcome"], result["exit_code"]) == ("failed", None)
    assert message in result["message"]


@pytest.mark.parametrize("platform", ["linux/amd64", EMULATED])
def test_missing_loader_under_qemu(project: Project, tmp_path: Path, platform: str) -> None:
    result = run(project, image(tmp_path, platform, elf(platform, interpreter="/lib/gone.so")), "--cpu=floor")
    assert (result["outcome"], result["exit_code"]) == ("failed", 255)
    assert "/main cannot start: its loader /lib/gone.so is not in the image" in result["message"]
    assert "link it statically" in result["message"]


def test_directory_as_program(project: Project, busybox_image: BusyboxImage) -> None:
    result = run(project, busybox_image(EMULATED, Cmd=["/srv"]))
    assert (result["outcome"], result["exit_code"]) == ("failed", None)
    assert "'/srv' is a directory, not a program" in result["message"]


def test_missing_emulator(project: Project, tmp_path: Path) -> None:
    project = project.with_env(INVOKE_BUILDKIT_CACHE=str(tmp_path / "cache"), PATH="/nowhere")
    result = run(project, image(tmp_path, EMULATED, program(EMULATED)), "--emulators=none")
    assert result["outcome"] == "not-registered"
    assert "qemu-aarch64" in result["message"]


@pytest.mark.parametrize("platform", ["linux/amd64", EMULATED, "linux/arm/v7", "linux/ppc64le"])
def test_emulator_crash(project: Project, tmp_path: Path, platform: str) -> None:
    name = image(tmp_path, platform, crashers.internal_fault(platform))
    result = run(project, name, "--cpu=floor")
    assert (result["outcome"], result["exit_code"]) == ("emulator-crash", crashers.EXIT_STATUS)
    assert crashers.MESSAGE in result["message"]
    assert f"version {result['emulator']['version']}" in result["message"]


@pytest.mark.parametrize("platform", guests.NEWER_INSTRUCTION_PLATFORMS)
def test_floor_cpu(project: Project, tmp_path: Path, platform: str) -> None:
    name = image(tmp_path, platform, guests.newer_instruction(platform))
    assert run(project, name, "--cpu=max", expect=0)["outcome"] == "passed"
    result = run(project, name, "--cpu=floor")
    assert (result["outcome"], result["exit_code"]) == ("illegal-instruction", 132)
    assert result["emulator"]["cpu"] in result["message"]


def test_both_cpus(project: Project, tmp_path: Path) -> None:
    name = image(tmp_path, "linux/arm/v6", guests.newer_instruction("linux/arm/v6"))
    report = project.json("run-emulated", name, "--runner=sandbox", "--cpu=both", expect=1)
    outcomes = [(result["emulator"]["cpu"], result["outcome"]) for result in report["results"]]
    assert outcomes == [("", "passed"), ("arm1176", "illegal-instruction")]
    assert "GOARM=6" in report["results"][1]["message"]


def test_unknown_cpu(project: Project, tmp_path: Path) -> None:
    name = image(tmp_path, EMULATED, program(EMULATED))
    done = project.task("run-emulated", name, "--runner=sandbox", "--cpu=cortex-z99", expect=2)
    assert f"{EMULATED}: QEMU has no CPU model 'cortex-z99'" in done.stderr
    assert "-cpu help" in done.stderr


@pytest.mark.parametrize("platform", guests.PLATFORMS)
def test_guest_ignores_signals(project: Project, tmp_path: Path, platform: str, unchanged: Unchanged) -> None:
    name = image(tmp_path, platform, guests.ignore_signals(platform))
    with unchanged():
        result = run(project, name, "--timeout=1", expect=124)
    assert result["outcome"] == "timeout"
    assert "more than 1 s" in result["message"]


@pytest.mark.parametrize("platform", guests.PLATFORMS)
def test_segmentation_fault(project: Project, tmp_path: Path, platform: str) -> None:
    result = run(project, image(tmp_path, platform, guests.segfault(platform)))
    assert (result["outcome"], result["exit_code"]) == ("failed", 139)


def test_illegal_instruction(project: Project, tmp_path: Path) -> None:
    result = run(project, image(tmp_path, EMULATED, program(EMULATED, code=ILLEGAL_INSTRUCTION)))
    assert (result["outcome"], result["exit_code"]) == ("illegal-instruction", 132)


LIMIT_CASES: dict[str, tuple[Callable[[str], bytes], str]] = {
    "fork bomb": (guests.fork_bomb, "more than 256 processes"),
    "memory": (guests.memory_hog, "more than 1024 MiB of memory"),
    "a child's memory": (
        functools.partial(guests.memory_hog, in_child=True),
        "more than 1024 MiB of memory",
    ),
    "output": (guests.flood, "more than 1024 KiB of output"),
    "errors": (functools.partial(guests.flood, stream=2), "more than 1024 KiB of output"),
}


@pytest.mark.parametrize("platform", guests.PLATFORMS)
@pytest.mark.parametrize("case", list(LIMIT_CASES))
def test_limits(project: Project, tmp_path: Path, unchanged: Unchanged, platform: str, case: str) -> None:
    make_program, message = LIMIT_CASES[case]
    name = image(tmp_path, platform, make_program(platform))
    with unchanged():
        result = run(project, name, "--timeout=30", expect=5)
    assert result["outcome"] == "failed"
    assert message in result["message"]
    assert len(result["stdout"]) <= 1 << 20


def test_timeout_of_writing_guest(project: Project, busybox_image: BusyboxImage) -> None:
    name = busybox_image("linux/amd64", Cmd=["/bin/sh", "-c", "while :; do echo x; sleep 0.02; done"])
    result = run(project, name, "--timeout=1", expect=124)
    assert (result["outcome"], result["stdout"][:2]) == ("timeout", "x\n")
    assert "more than 1 s" in result["message"]


def test_nul_in_argument(project: Project, busybox_image: BusyboxImage) -> None:
    result = run(project, busybox_image("linux/amd64", Cmd=["/bin/echo", "a\0b"]))
    assert (result["outcome"], result["exit_code"]) == ("failed", None)
    assert result["message"].startswith("could not start: ")


def test_program_cannot_start(project: Project, busybox_image: BusyboxImage) -> None:
    script = {"run": b"#!/bin/sh\n"}
    result = run(project, busybox_image("linux/amd64", Cmd=["/run"], files=script, WorkingDir="/bin/sh"))
    assert result["outcome"] == "failed"
    assert "/bin/sh" in result["message"]


def test_failure_does_not_stop_others(project: Project, tmp_path: Path) -> None:
    memory = MemoryImage()
    bad, good = "linux/arm64", ("linux/amd64", "linux/riscv64", "linux/arm/v6")
    programs = {good[0]: program(good[0]), bad: guests.ignore_signals(bad)} | {
        each: program(each) for each in good[1:]
    }
    tars = {each: [make_tar({"main": data})] for each, data in programs.items()}
    memory.set_index([add_platform(memory, each, layers, Cmd=["/main"]) for each, layers in tars.items()])
    name = f"oci-archive:{write_archive(memory, tmp_path / 'image.tar')}"
    report = project.json("run-emulated", name, "--runner=sandbox", "--timeout=2", expect=124)
    outcomes = [(result["platform"], result["outcome"]) for result in report["results"]]
    assert outcomes == [
        ("linux/amd64", "passed"), (bad, "timeout"), ("linux/riscv64", "passed"), ("linux/arm/v6", "passed")
    ]  # fmt: skip
