"""Programs on which QEMU's user-mode emulator itself crashes: real faults, found with QEMU 11.1.2.

:func:`internal_fault`: an ELF segment says that it has more of the file than there is. The kernel and
QEMU map it all the same; a page of it beyond the file's end has nothing behind it. A system call that
writes there gets EFAULT from a kernel. QEMU fills in the answer itself (here of ``uname``), dies by
SIGBUS in its own code and says ``qemu-aarch64: QEMU internal SIGBUS {code=ADRERR, addr=0x20000}``.

:func:`silent_fault`: the same segment has bytes beyond what is in the file, to be zeroed at the start.
QEMU's loader writes them before it looks after signals: SIGBUS, and not a word.
"""

from __future__ import annotations

import struct

from buildkit_tasks.platforms import Machine, Platform
from tests.support.project import program

SAYS = "QEMU internal SIGBUS"
STATUS = 128 + 7  # SIGBUS, as a shell and an init report it; MIPS has another number, QEMU dies by the host's

_FILE_SIZE = 0x40000  # far more than the file has, whatever the page size
_READ_WRITE_EXECUTE = 7

# uname(0x20000): the address is beyond the file's end, in the segment that starts at 0x10000.
_UNAME = {
    "amd64": "bf 00 00 02 00  b8 3f 00 00 00  0f 05",
    "arm64": "40 00 a0 d2  08 14 80 d2  01 00 00 d4",
    "arm": "02 08 a0 e3  7a 70 a0 e3  00 00 00 ef",
    "386": "bb 00 00 02 00  b8 7a 00 00 00  cd 80",
    "ppc64le": "02 00 60 3c  7a 00 00 38  02 00 00 44",
    "s390x": "a5 2e 00 02  0a 7a",
    "riscv64": "37 05 02 00  93 08 00 0a  73 00 00 00",
    "mips64le": "02 00 04 3c  c5 13 02 24  0c 00 00 00",
    "loong64": "04 04 00 14  0b 80 82 03  00 00 2b 00",
}


def internal_fault(platform: str) -> bytes:
    """A program on which QEMU dies by a signal in its own code and says so."""
    machine = Platform.parse(platform).machine
    return _stretched(machine, program(platform, code=_UNAME[machine.architecture]), _FILE_SIZE)


def silent_fault(platform: str) -> bytes:
    """A program on which QEMU dies by a signal before it says anything."""
    return _stretched(Platform.parse(platform).machine, program(platform), _FILE_SIZE + 0x800)


def _stretched(machine: Machine, data: bytes, memory: int) -> bytes:
    """The same with one segment of that size in memory, nearly all of it said to be in the file."""
    file = min(memory, memory - 0x400 if memory > _FILE_SIZE else memory)
    changed = bytearray(data)
    order = "<" if machine.byte_order == "little" else ">"
    if machine.bits == 64:
        struct.pack_into(f"{order}I", changed, 64 + 4, _READ_WRITE_EXECUTE)
        struct.pack_into(f"{order}QQ", changed, 64 + 32, file, memory)
    else:
        struct.pack_into(f"{order}III", changed, 52 + 16, file, memory, _READ_WRITE_EXECUTE)
    return bytes(changed)
