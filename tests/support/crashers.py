"""Programs on which QEMU's user-mode emulator itself crashes (seen with QEMU 11.1.2).

:func:`internal_fault`: an ELF segment claims more bytes than the file has. The kernel and QEMU map it
nevertheless; pages beyond the end of the file are not backed. A system call that writes there fails with
EFAULT on a kernel. QEMU writes the result itself (here of ``uname``), gets SIGBUS in its own code and prints
``qemu-aarch64: QEMU internal SIGBUS {code=ADRERR, addr=0x20000}``.

:func:`silent_fault`: the same segment also has bytes beyond its file part, which the loader must zero. QEMU's
loader writes them before it installs signal handlers: SIGBUS without a message.
"""

from __future__ import annotations

import struct

from buildkit_tasks.platforms import Machine, Platform
from tests.support.project import program

MESSAGE = "QEMU internal SIGBUS"
# SIGBUS as a shell or init reports it: the host's number, also for MIPS guests, whose number differs.
EXIT_STATUS = 128 + 7

_FILE_SIZE = 0x40000  # larger than the file for any page size
_READ_WRITE_EXECUTE = 7

# uname(0x20000): an address beyond the end of the file, in the segment that starts at 0x10000.
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
    """Return a program on which QEMU crashes in its own code and reports it."""
    machine = Platform.parse(platform).machine
    return _enlarge_segment(machine, program(platform, code=_UNAME[machine.architecture]), _FILE_SIZE)


def silent_fault(platform: str) -> bytes:
    """Return a program on which QEMU crashes before it can report anything."""
    return _enlarge_segment(Platform.parse(platform).machine, program(platform), _FILE_SIZE + 0x800)


def _enlarge_segment(machine: Machine, data: bytes, memory: int) -> bytes:
    """Enlarge the program's segment to ``memory`` bytes, nearly all of them claimed to be in the file."""
    file_size = memory - 0x400 if memory > _FILE_SIZE else memory
    edited = bytearray(data)
    order = "<" if machine.byte_order == "little" else ">"
    if machine.bits == 64:
        struct.pack_into(f"{order}I", edited, 64 + 4, _READ_WRITE_EXECUTE)
        struct.pack_into(f"{order}QQ", edited, 64 + 32, file_size, memory)
    else:
        struct.pack_into(f"{order}III", edited, 52 + 16, file_size, memory, _READ_WRITE_EXECUTE)
    return bytes(edited)
