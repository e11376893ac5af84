"""The filter of system calls for guests, as a program of classic BPF (seccomp(2), linux/seccomp.h).

Denied is what Docker's default profile denies and a process without capabilities can reach: keys, io_uring,
userfaultfd, performance counters, memory policies, descriptors of other processes, new namespaces, and all
sockets but those of four families. A guest may not change the priority or the limits of init either, which
watches it under the same user, nor on which processors one of them runs.

A native guest and QEMU run under the same filter: an emulated guest's system calls are QEMU's.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DENIED", "NUMBERS", "Rule", "build_filter", "native_number"]

_NONE = -1
# The tables of numbers in the order of the columns below; "generic" is that of arm64, riscv64 and loong64.
_TABLES = ("amd64", "386", "generic", "arm", "ppc64le", "s390x")
NUMBERS = {
    "acct": (163, 51, 89, 51, 51, 51),
    "add_key": (248, 286, 217, 309, 269, 278),
    "bpf": (321, 357, 280, 386, 361, 351),
    "clone": (56, 120, 220, 120, 120, 120),
    "clone3": (435, 435, 435, 435, 435, 435),
    "fanotify_init": (300, 338, 262, 367, 323, 332),
    "fanotify_mark": (301, 339, 263, 368, 324, 333),
    "fsconfig": (431, 431, 431, 431, 431, 431),
    "fsmount": (432, 432, 432, 432, 432, 432),
    "fsopen": (430, 430, 430, 430, 430, 430),
    "fspick": (433, 433, 433, 433, 433, 433),
    "get_mempolicy": (239, 275, 236, 320, 260, 269),
    "io_uring_enter": (426, 426, 426, 426, 426, 426),
    "io_uring_register": (427, 427, 427, 427, 427, 427),
    "io_uring_setup": (425, 425, 425, 425, 425, 425),
    "ioprio_set": (251, 289, 30, 314, 273, 282),
    "kcmp": (312, 349, 272, 378, 354, 343),
    "keyctl": (250, 288, 219, 311, 271, 280),
    "lookup_dcookie": (212, 253, 18, 249, 235, 110),
    "mbind": (237, 274, 235, 319, 259, 268),
    "migrate_pages": (256, 294, 238, 400, 258, 287),
    "mount_setattr": (442, 442, 442, 442, 442, 442),
    "move_mount": (429, 429, 429, 429, 429, 429),
    "move_pages": (279, 317, 239, 344, 301, 310),
    "open_by_handle_at": (304, 342, 265, 371, 346, 336),
    "open_tree": (428, 428, 428, 428, 428, 428),
    "perf_event_open": (298, 336, 241, 364, 319, 331),
    "personality": (135, 136, 92, 136, 136, 136),
    "pidfd_getfd": (438, 438, 438, 438, 438, 438),
    "prlimit64": (302, 340, 261, 369, 325, 334),
    "quotactl": (179, 131, 60, 131, 131, 131),
    "quotactl_fd": (443, 443, 443, 443, 443, 443),
    "request_key": (249, 287, 218, 310, 270, 279),
    "sched_setaffinity": (203, 241, 122, 241, 222, 239),
    "sched_setattr": (314, 351, 274, 380, 355, 345),
    "sched_setparam": (142, 154, 118, 154, 154, 154),
    "sched_setscheduler": (144, 156, 119, 156, 156, 156),
    "set_mempolicy": (238, 276, 237, 321, 261, 270),
    "set_mempolicy_home_node": (450, 450, 450, 450, 450, 450),
    "setns": (308, 346, 268, 375, 350, 339),
    "setpriority": (141, 97, 140, 97, 97, 97),
    "socket": (41, 359, 198, 281, 326, 359),
    "socketcall": (_NONE, 102, _NONE, _NONE, 102, 102),
    "sysfs": (139, 135, _NONE, 135, 135, 135),
    "unshare": (272, 310, 97, 337, 282, 303),
    "uselib": (134, 86, _NONE, 86, 86, 86),
    "userfaultfd": (323, 374, 282, 388, 364, 355),
    "ustat": (136, 62, _NONE, 62, 62, 62),
    "vm86": (_NONE, 166, _NONE, _NONE, 113, _NONE),
    "vm86old": (_NONE, 113, _NONE, _NONE, _NONE, _NONE),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What the filter answers to a system call.

    Without ``argument`` always ``error``; with it the call is allowed if that argument is one of ``allowed``,
    denied if it is one of ``denied``, or denied if it has one of the bits of ``mask``. A denied call with the
    error 0 succeeds without effect.
    """

    error: int = errno.EPERM
    argument: int = 0
    allowed: tuple[int, ...] = ()
    denied: tuple[int, ...] = ()
    mask: int = 0


_SUCCESS = 0
_INIT = 1  # its PID in the guest's PID namespace
_PRIO_USER = 2
_IOPRIO_WHO_USER = 3
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK: include/linux/socket.h
# PER_LINUX, UNAME26, PER_LINUX32, both, and the question which it is: include/uapi/linux/personality.h
_PERSONALITIES = (0, 0x20000, 0x8, 0x20008, 0xFFFFFFFF)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: include/uapi/linux/sched.h
_NEW_NAMESPACES = 0x7E020000

# System calls with other rules than a plain EPERM. Where libraries fall back to another call, it is ENOSYS.
_RULES: dict[str, tuple[Rule, ...]] = {
    "clone": (Rule(mask=_NEW_NAMESPACES),),
    "clone3": (Rule(error=errno.ENOSYS),),
    "ioprio_set": (Rule(denied=(_IOPRIO_WHO_USER,)), Rule(argument=1, denied=(_INIT,))),
    "personality": (Rule(allowed=_PERSONALITIES),),
    "prlimit64": (Rule(denied=(_INIT,)),),
    # As in a cpuset: a program may ask for other processors and gets those that it has.
    "sched_setaffinity": (Rule(denied=(_INIT,)), Rule(error=_SUCCESS)),
    "sched_setattr": (Rule(denied=(_INIT,)),),
    "sched_setparam": (Rule(denied=(_INIT,)),),
    "sched_setscheduler": (Rule(denied=(_INIT,)),),
    "setpriority": (Rule(denied=(_PRIO_USER,)), Rule(argument=1, denied=(_INIT,))),
    "socket": (Rule(allowed=_FAMILIES),),
    "socketcall": (Rule(error=errno.ENOSYS),),
}
DENIED = {name: _RULES.get(name, (Rule(),)) for name in NUMBERS}
"""The rules of each system call of :data:`NUMBERS`."""

# The tables that a machine's kernel has, with their AUDIT_ARCH constants (linux/audit.h), by `uname -m`.
_ARCHITECTURES: dict[str, tuple[tuple[int, str], ...]] = {
    "x86_64": ((0xC000003E, "amd64"), (0x40000003, "386")),
    "i686": ((0x40000003, "386"),),
    "aarch64": ((0xC00000B7, "generic"), (0x40000028, "arm")),
    "armv7l": ((0x40000028, "arm"),),
    "armv6l": ((0x40000028, "arm"),),
    "riscv64": ((0xC00000F3, "generic"),),
    "loongarch64": ((0xC0000102, "generic"),),
    "ppc64le": ((0xC0000015, "ppc64le"),),
    "s390x": ((0x80000016, "s390x"),),
}
_BIG_ENDIAN = ("s390x",)
_LONG_SIZE = 8  # bytes, of a pointer of 64 bits
_X32_BIT = 0x40000000  # of the numbers of the x32 ABI, which has the AUDIT_ARCH of amd64

# linux/bpf_common.h, linux/filter.h: load a word; jump if equal, at least, or with a common bit; return
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # of struct seccomp_data

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


@cache
def build_filter(machine: str = os.uname().machine) -> bytes:
    """Return the filter for a kernel of this machine (``uname -m``), in its byte order; empty if unknown.

    Programs for architectures that the machine does not run otherwise are killed, and x32 has no calls.
    """
    architectures = _ARCHITECTURES.get(machine, ())
    program: list[_Instruction] = [(_LOAD, 0, 0, _ARCH_OFFSET)]
    for audit_arch, table in architectures:
        block = list(_build_block(table))
        program += [(_JUMP_EQUAL, 0, len(block), audit_arch), *block]
    program.append((_RETURN, 0, 0, _KILL_PROCESS))
    order = ">" if machine in _BIG_ENDIAN else "<"
    return b"".join(struct.pack(f"{order}HBBI", *each) for each in program) if architectures else b""


def native_number(
    name: str, machine: str = os.uname().machine, pointer_size: int = struct.calcsize("P")
) -> int:
    """Return the number of a system call for programs like this one; 0 if it is unknown."""
    tables = [table for _, table in _ARCHITECTURES.get(machine, ())]
    if not tables:
        return 0
    table = (
        tables[0] if pointer_size == _LONG_SIZE else tables[-1]
    )  # a 64-bit kernel has the other one second
    return max(NUMBERS[name][_TABLES.index(table)], 0)


def _build_block(table: str) -> Iterator[_Instruction]:
    """Yield the instructions for one architecture; they end with a return."""
    yield (_LOAD, 0, 0, _NUMBER_OFFSET)
    if table == "amd64":
        yield (_JUMP_AT_LEAST, 0, 1, _X32_BIT)
        yield (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    column = _TABLES.index(table)
    for name, numbers in NUMBERS.items():
        if numbers[column] != _NONE:
            rules = list(_build_rules(name, table))
            yield (_JUMP_EQUAL, 0, len(rules), numbers[column])
            yield from rules
    yield (_RETURN, 0, 0, _ALLOW)


def _build_rules(name: str, table: str) -> Iterator[_Instruction]:
    """Yield the instructions for one system call; clone has its flags second on s390x."""
    swapped = 1 if (table, name) == ("s390x", "clone") else 0
    for rule in DENIED[name]:
        deny = (_RETURN, 0, 0, _ERRNO | rule.error)
        if not (rule.allowed or rule.denied or rule.mask):
            yield deny
            return
        yield (_LOAD, 0, 0, _argument_offset(rule.argument + swapped, is_big_endian=table in _BIG_ENDIAN))
        for value in rule.allowed:
            yield from ((_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))
        if rule.allowed:
            yield deny
            return
        for value in rule.denied:
            yield from ((_JUMP_EQUAL, 0, 1, value), deny)
        if rule.mask:
            yield from ((_JUMP_SET, 0, 1, rule.mask), deny)
    yield (_RETURN, 0, 0, _ALLOW)


def _argument_offset(index: int, *, is_big_endian: bool) -> int:
    """Return the offset of the lower half of an argument of 64 bits."""
    return _ARGUMENTS_OFFSET + 8 * index + (4 if is_big_endian else 0)
