"""The filter of system calls answers as the one that libseccomp makes of the same table."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.run.sandbox import seccomp
from buildkit_tasks.run.sandbox.seccomp import DENIED, NUMBERS, Rule, build_filter
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import fetch_newest_package
from tests.support.bpf import ALLOW, ERRNO, KILL_PROCESS, evaluate

pytestmark = pytest.mark.interop

Comparison = tuple[int, int]  # the mask of an argument, and its value
ENOSYS = ERRNO | 38
ANSWERS = (ALLOW, KILL_PROCESS, ERRNO, ERRNO | 1, ENOSYS)
X32 = 0x40000000
AMD64 = 0xC000003E
# Of direct calls on machines that have socketcall(2), too, libseccomp cannot look at the arguments.
MULTIPLEXED = ("386", "ppc64le", "s390x")
_BAD_ARCH_ACTION = 2  # enum scmp_filter_attr
_MASKED_EQUAL = 7  # enum scmp_compare
_WORD = 0xFFFFFFFF
_TABLES = seccomp._TABLES  # the names of the columns of NUMBERS


class ArgumentComparison(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


@pytest.fixture(scope="module")
def library(pytestconfig: pytest.Config) -> ctypes.CDLL:
    """Debian's newest libseccomp; the tests are skipped where it cannot be had."""
    folder, commands = cache_folder(load_settings()) / "debian", SubprocessRunner(dry_run_output=sys.stderr)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "amd64")
    try:
        prefix = fetch_newest_package("libseccomp2", [architecture], folder, commands, print)[architecture]
        loaded = ctypes.CDLL(str(next(prefix.glob("usr/lib/*/libseccomp.so.2"))))
    except (EngineError, OSError) as error:
        if pytestconfig.getoption("--arch-require-engine"):
            raise
        pytest.skip(f"libseccomp is not available: {error}")
    loaded.seccomp_init.restype = ctypes.c_void_p
    return loaded


def make_with_libseccomp(
    library: ctypes.CDLL, audit_arch: int, table: str, names: Sequence[str], path: Path
) -> bytes:
    """Return libseccomp's program for one architecture with the rules of these system calls."""
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    check(library.seccomp_attr_set(context, _BAD_ARCH_ACTION, ctypes.c_uint32(KILL_PROCESS)))
    native = library.seccomp_arch_native()
    if native != ctypes.c_int(audit_arch).value:
        check(library.seccomp_arch_remove(context, ctypes.c_uint32(native)))
        check(library.seccomp_arch_add(context, ctypes.c_uint32(audit_arch)))
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        assert number != -1, f"libseccomp does not know {name}"
        for error, argument, (mask, value) in expand(
            DENIED[name], swapped=(table, name) == ("s390x", "clone")
        ):
            comparison = ArgumentComparison(argument, _MASKED_EQUAL, mask, value)
            comparisons = (ArgumentComparison * 1)(comparison)
            count = 1 if mask else 0
            action = ctypes.c_uint32(ERRNO | error)
            check(library.seccomp_rule_add_array(context, action, number, count, comparisons))
    with path.open("w+b") as file:
        check(library.seccomp_export_bpf(context, file.fileno()))
        library.seccomp_release(context)
        file.seek(0)
        return file.read()


def check(status: int) -> None:
    assert status >= 0, os.strerror(-status)


def expand(rules: Sequence[Rule], *, swapped: bool) -> Iterator[tuple[int, int, Comparison]]:
    """Yield what is denied as errors, arguments, and comparisons of one argument, of which none overlap.

    libseccomp compares an argument once in a rule: all values but some are ranges with a common prefix.
    """
    decided: list[int] = []
    for rule in rules:
        argument = 1 if swapped else rule.argument
        if rule.allowed:
            yield from ((rule.error, argument, each) for each in cover_others(rule.allowed))
        elif rule.denied:
            yield from ((rule.error, argument, (_WORD, value)) for value in rule.denied)
            decided += rule.denied
        elif rule.mask:
            bits = [1 << bit for bit in range(32) if rule.mask >> bit & 1]
            yield from ((rule.error, argument, (bit, bit)) for bit in bits)
        elif decided:
            yield from ((rule.error, argument, each) for each in cover_others(decided))
        else:
            yield rule.error, argument, (0, 0)


def cover_others(values: Sequence[int], prefix: int = 0, bits: int = 32) -> Iterator[Comparison]:
    """Yield comparisons that hold for all numbers of 32 bits but these."""
    if not any(value >> bits == prefix >> bits for value in values):
        yield _WORD >> bits << bits, prefix
    elif bits:
        yield from cover_others(values, prefix, bits - 1)
        yield from cover_others(values, prefix | 1 << (bits - 1), bits - 1)


def sample_values(rules: Sequence[Rule]) -> list[int]:
    """Return the constants of the rules and what is beside them, also with the other half of the argument."""
    constants = [
        0,
        1,
        2,
        _WORD,
        *itertools.chain(*((*rule.allowed, *rule.denied, rule.mask) for rule in rules)),
    ]
    constants += [1 << bit for rule in rules if rule.mask for bit in range(32)]
    lower = {value + step & _WORD for value in constants for step in (-1, 0, 1)}
    return sorted(lower | {value | _WORD << 32 for value in lower} | {value | 1 << 32 for value in lower})


def sample_calls(table: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield numbers and arguments of system calls: all without arguments, then around each condition."""
    column = _TABLES.index(table)
    numbers = [
        *range(601),
        0xF0001,
        0xF0006,
        0x3FFFFFFF,
        X32 - 1,
        X32,
        X32 + 59,
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFFE,
    ]
    yield from ((number, ()) for number in numbers)
    for name, rules in DENIED.items():
        values = sample_values(rules)
        for first, second in (
            [(value, 0) for value in values] + [(0, value) for value in values] + [(3, 1), (2, 1)]
        ):
            if NUMBERS[name][column] >= 0:
                yield NUMBERS[name][column], (first, second)


MACHINES = [
    (machine, audit_arch, table)
    for machine, architectures in seccomp._ARCHITECTURES.items()
    for audit_arch, table in architectures
]


@pytest.mark.parametrize(("machine", "audit_arch", "table"), MACHINES)
def test_same_answers(
    library: ctypes.CDLL, tmp_path: Path, machine: str, audit_arch: int, table: str
) -> None:
    column, order = _TABLES.index(table), ">" if machine == "s390x" else "<"
    separate = ("socket", "socketcall") if table in MULTIPLEXED else ()
    names = [name for name, numbers in NUMBERS.items() if numbers[column] >= 0 and name not in separate]
    theirs = make_with_libseccomp(library, audit_arch, table, names, tmp_path / "filter")
    ours = build_filter(machine)
    skipped = {NUMBERS[name][column] for name in separate}
    differences, verdicts = [], set()
    for number, arguments in sample_calls(table):
        expected = evaluate(theirs, audit_arch, number, *arguments, order=order)
        if order == ">" and expected not in ANSWERS:
            # Of a program for the other byte order libseccomp swaps some answers once too often.
            expected = int.from_bytes(expected.to_bytes(4, "little"), "big")
        if table == "amd64" and number >= X32:
            # libseccomp kills the process: a program that asks for the x32 ABI is told that there is none.
            assert expected == KILL_PROCESS
            expected = ENOSYS
        answer = evaluate(ours, audit_arch, number, *arguments, order=order)
        verdicts.add(expected)
        if answer != expected and number not in skipped:
            differences.append((number, [hex(value) for value in arguments], hex(answer), hex(expected)))
    assert not differences[:10]
    assert verdicts == {*ANSWERS} - {KILL_PROCESS}


@pytest.mark.parametrize("machine", [machine for machine, _, _ in MACHINES])
def test_other_architectures(library: ctypes.CDLL, tmp_path: Path, machine: str) -> None:
    known = [audit_arch for name, audit_arch, _ in MACHINES if name == machine]
    order = ">" if machine == "s390x" else "<"
    _, audit_arch, table = next(row for row in MACHINES if row[0] == machine)
    theirs = make_with_libseccomp(library, audit_arch, table, [], tmp_path / "filter")
    for other in {arch for _, arch, _ in MACHINES} | {0, 0x14, _WORD}:
        if other not in known:
            assert evaluate(build_filter(machine), other, 1, order=order) == KILL_PROCESS
            assert evaluate(theirs, other, 1, order=order) == KILL_PROCESS
