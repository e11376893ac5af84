"""The filter of system calls, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno

import pytest

from buildkit_tasks.run.sandbox import seccomp
from buildkit_tasks.run.sandbox.seccomp import DENIED, NUMBERS, build_filter, native_number
from tests.support.bpf import ALLOW, ERRNO, KILL_PROCESS, evaluate

AMD64, I386, ARM64, ARM, S390X = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0x80000016
EXECVE = {AMD64: 59, I386: 11, ARM64: 221, ARM: 11}


def answer(arch: int, name: str, *arguments: int, machine: str = "x86_64") -> int:
    """Return the errno of a system call, 0 if it is allowed."""
    column = {AMD64: 0, I386: 1, ARM64: 2, ARM: 3}[arch]
    action = evaluate(build_filter(machine), arch, NUMBERS[name][column], *arguments)
    assert action == ALLOW or action & 0xFFFF0000 == ERRNO
    return action & 0xFFFF if action != ALLOW else 0


@pytest.mark.parametrize(
    ("arch", "machine"), [(AMD64, "x86_64"), (I386, "x86_64"), (ARM64, "aarch64"), (ARM, "aarch64")]
)
def test_plain_rules(arch: int, machine: str) -> None:
    column = {AMD64: 0, I386: 1, ARM64: 2, ARM: 3}[arch]
    plain = [
        name for name, rules in DENIED.items() if rules == (seccomp.Rule(),) and NUMBERS[name][column] >= 0
    ]
    assert len(plain) > 30
    assert {answer(arch, name, machine=machine) for name in plain} == {errno.EPERM}
    assert answer(arch, "clone3", machine=machine) == errno.ENOSYS
    assert evaluate(build_filter(machine), arch, EXECVE[arch]) == ALLOW


def test_socketcall() -> None:
    assert answer(I386, "socketcall", 1) == errno.ENOSYS


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("socket", (1,), 0),
        ("socket", (2,), 0),
        ("socket", (10,), 0),
        ("socket", (16,), 0),
        ("socket", (17,), errno.EPERM),
        ("socket", (38,), errno.EPERM),
        ("socket", (40,), errno.EPERM),
        ("socket", (1 << 32 | 40,), errno.EPERM),
        ("clone", (0x3D0F00,), 0),
        ("clone", (0x11,), 0),
        ("clone", (0x10000011,), errno.EPERM),
        ("clone", (0x40000011,), errno.EPERM),
        ("clone", (0x02000011,), errno.EPERM),
        ("personality", (0,), 0),
        ("personality", (0x20008,), 0),
        ("personality", (0xFFFFFFFF,), 0),
        ("personality", (-1,), 0),
        ("personality", (0x40000,), errno.EPERM),
        ("sched_setaffinity", (0,), 0),
        ("sched_setaffinity", (2,), 0),
        ("sched_setaffinity", (1,), errno.EPERM),
        ("sched_setscheduler", (1,), errno.EPERM),
        ("sched_setparam", (1,), errno.EPERM),
        ("sched_setattr", (1,), errno.EPERM),
        ("prlimit64", (0,), 0),
        ("prlimit64", (1,), errno.EPERM),
        ("setpriority", (0, 0), 0),
        ("setpriority", (0, 1), errno.EPERM),
        ("setpriority", (2, 0), errno.EPERM),
        ("ioprio_set", (1, 0), 0),
        ("ioprio_set", (1, 1), errno.EPERM),
        ("ioprio_set", (3, 0), errno.EPERM),
    ],
)
@pytest.mark.parametrize("arch", [AMD64, I386])
def test_rules_for_arguments(arch: int, name: str, arguments: tuple[int, ...], error: int) -> None:
    assert answer(arch, name, *arguments) == error


def test_flags_of_clone_on_s390x() -> None:
    clone, program = NUMBERS["clone"][5], build_filter("s390x")
    assert evaluate(program, S390X, clone, 0x7FFFF0000000, 0x11, order=">") == ALLOW
    assert evaluate(program, S390X, clone, 0, 0x10000011, order=">") == ERRNO | errno.EPERM


def test_x32_has_no_calls() -> None:
    for number in (0x40000000, 0x40000000 + 59, 0x7FFFFFFF, -1):
        assert evaluate(build_filter("x86_64"), AMD64, number) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize(
    "machine", ["x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "loongarch64", "armv7l"]
)
def test_foreign_architecture_is_killed(machine: str) -> None:
    order = ">" if machine == "s390x" else "<"
    assert evaluate(build_filter(machine), 0x14, 0, order=order) == KILL_PROCESS
    assert len(build_filter(machine)) // 8 < 4096  # BPF_MAXINSNS


def test_unknown_machine() -> None:
    assert build_filter("sparc64") == b""


@pytest.mark.parametrize(
    ("machine", "pointer_size", "number"),
    [
        ("x86_64", 8, 250),
        ("x86_64", 4, 288),
        ("i686", 4, 288),
        ("aarch64", 8, 219),
        ("aarch64", 4, 311),
        ("riscv64", 8, 219),
        ("sparc64", 8, 0),
    ],
)
def test_number_of_keyctl(machine: str, pointer_size: int, number: int) -> None:
    assert native_number("keyctl", machine, pointer_size) == number
