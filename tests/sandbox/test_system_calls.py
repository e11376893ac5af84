"""System calls that the filter denies, made by native and by emulated guests."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.sandbox.seccomp import DENIED, NUMBERS, Rule, build_filter
from buildkit_tasks.run.sandbox.supervisor import Supervisor
from tests.sandbox.conftest import find_qemu, run_program
from tests.support.bpf import ALLOW, evaluate
from tests.support.project import program

ARM64 = Platform.parse("linux/arm64").machine
PLAIN = [name for name, rules in DENIED.items() if rules == (Rule(),)]
ALLOWED = 200  # the exit status of a guest whose system call did not fail

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code for amd64")


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as started:
        started.register(ARM64, find_qemu(ARM64))
        yield started


def system_call(platform: str, number: int, first: int, second: int) -> bytes:
    """Return a program that makes a system call and exits with its errno."""
    if platform == "linux/amd64":
        words = [struct.pack("<i", word).hex() for word in (number, first, second)]
        code = (
            f"b8 {words[0]}  bf {words[1]}  be {words[2]}  31 d2  45 31 d2  45 31 c0  45 31 c9  0f 05"
            "89 c7  f7 df  85 c0  78 05  bf c8 00 00 00  b8 3c 00 00 00  0f 05"
        )
        return program(platform, code=code)
    instructions = [
        0xD2800008 | number << 5, 0xD2800000 | first << 5, 0xD2800001 | second << 5,  # mov x8, x0, x1
        0xD2800002, 0xD2800003, 0xD2800004, 0xD2800005, 0xD4000001,  # mov x2 to x5, #0; svc
        0xB6F80060, 0xCB0003E0, 0x14000002, 0xD2801900, 0xD2800BA8, 0xD4000001,
    ]  # fmt: skip
    return program(platform, code=b"".join(struct.pack("<I", each) for each in instructions).hex())


def exit_code(supervisor: Supervisor, root: Path, data: bytes) -> int:
    return run_program(supervisor, root, data).exit_code


@pytest.mark.parametrize("name", [name for name in PLAIN if NUMBERS[name][0] >= 0])
def test_denied_natively(supervisor: Supervisor, root: Path, name: str) -> None:
    assert exit_code(supervisor, root, system_call("linux/amd64", NUMBERS[name][0], 0, 0)) == errno.EPERM


@pytest.mark.parametrize("name", [name for name in PLAIN if NUMBERS[name][2] >= 0])
def test_denied_in_qemu(supervisor: Supervisor, root: Path, name: str) -> None:
    """QEMU does not know all of them, and looks at the arguments of some first."""
    code = exit_code(supervisor, root, system_call("linux/arm64", NUMBERS[name][2], 0, 0))
    assert code in (errno.EPERM, errno.ENOSYS, errno.EFAULT, errno.EINVAL)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("clone3", 0, 0), errno.ENOSYS),
        (("socket", 1, 1), ALLOWED),
        (("socket", 16, 3), ALLOWED),
        (("socket", 40, 1), errno.EPERM),  # AF_VSOCK
        (("socket", 38, 5), errno.EPERM),  # AF_ALG
        (("personality", 0, 0), ALLOWED),
        (("personality", 0x4000, 0), errno.EPERM),
        (("setpriority", 0, 1), errno.EPERM),
        (("setpriority", 2, 0), errno.EPERM),
    ],
)
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_arguments(
    supervisor: Supervisor, root: Path, platform: str, call: tuple[str, int, int], expected: int
) -> None:
    name, first, second = call
    number = NUMBERS[name][{"linux/amd64": 0, "linux/arm64": 2}[platform]]
    assert exit_code(supervisor, root, system_call(platform, number, first, second)) == expected


@pytest.mark.parametrize("name", ["sched_setaffinity", "sched_setscheduler", "sched_setparam", "prlimit64"])
def test_init_is_not_the_guests_to_steer(supervisor: Supervisor, root: Path, name: str) -> None:
    assert exit_code(supervisor, root, system_call("linux/amd64", NUMBERS[name][0], 1, 0)) == errno.EPERM
    assert exit_code(supervisor, root, system_call("linux/amd64", NUMBERS[name][0], 0, 0)) != errno.EPERM


@pytest.mark.parametrize(
    "call",
    [
        (39, 0, 0),  # getpid
        (NUMBERS["add_key"][0], 0, 0),
        (NUMBERS["clone3"][0], 0, 0),
        (NUMBERS["personality"][0], 0x20008, 0),
        (NUMBERS["personality"][0], 0x20009, 0),
        (NUMBERS["ioprio_set"][0], 1, 0),
        (NUMBERS["setpriority"][0], 0, 1),
        (NUMBERS["socket"][0], 1, 1),
        (NUMBERS["socket"][0], 17, 3),
        (0x40000000 + 39, 0, 0),
    ],
)
def test_kernel_agrees_with_interpreter(
    supervisor: Supervisor, root: Path, call: tuple[int, int, int]
) -> None:
    """What other tests evaluate is what the kernel does with the same program."""
    verdict = evaluate(build_filter("x86_64"), 0xC000003E, *call)
    expected = ALLOWED if verdict == ALLOW else verdict & 0xFFFF
    assert exit_code(supervisor, root, system_call("linux/amd64", *call)) == expected


def test_x32(supervisor: Supervisor, root: Path) -> None:
    getpid = 0x40000000 + 39
    assert exit_code(supervisor, root, system_call("linux/amd64", getpid, 0, 0)) == errno.ENOSYS
