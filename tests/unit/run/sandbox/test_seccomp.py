"""The filter of system calls, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct

import pytest

from buildkit_tasks.run.sandbox import seccomp
from buildkit_tasks.run.sandbox.seccomp import DENIED, NUMBERS, build_filter, native_number

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AMD64, I386, ARM64, ARM, S390X = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0x80000016
EXECVE = {AMD64: 59, I386: 11, ARM64: 221, ARM: 11}


def run_filter(program: bytes, arch: int, number: int, *arguments: int) -> int:
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, arch, 0, *(value & 0xFFFFFFFFFFFFFFFF for value in padded))
    instructions = list(struct.iter_unpack("<HBBI", program))
    position = accumulator = 0
    while True:
        code, if_true, if_false, constant = instructions[position]
        position += 1
        if code == 0x06:
            return int(constant)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
            continue
        holds = {
            0x15: accumulator == constant,
            0x35: accumulator >= constant,
            0x45: bool(accumulator & constant),
        }[code]
        position += if_true if holds else if_false


def answer(arch: int, name: str, *arguments: int, machine: str = "x86_64") -> int:
    """Return the errno of a system call, 0 if it is allowed."""
    column = {AMD64: 0, I386: 1, ARM64: 2, ARM: 3}[arch]
    action = run_filter(build_filter(machine), arch, NUMBERS[name][column], *arguments)
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
    assert run_filter(build_filter(machine), arch, EXECVE[arch]) == ALLOW


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
    clone = NUMBERS["clone"][5]
    assert run_filter(build_filter("s390x"), S390X, clone, 0x7FFFF0000000, 0x11) == ALLOW
    assert run_filter(build_filter("s390x"), S390X, clone, 0, 0x10000011) == ERRNO | errno.EPERM


def test_x32_has_no_calls() -> None:
    for number in (0x40000000, 0x40000000 + 59, 0x7FFFFFFF, -1):
        assert run_filter(build_filter("x86_64"), AMD64, number) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize(
    "machine", ["x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "loongarch64", "armv7l"]
)
def test_foreign_architecture_is_killed(machine: str) -> None:
    assert run_filter(build_filter(machine), 0x14, 0) == KILL
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
