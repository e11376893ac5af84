"""The smallest program of an architecture: an ELF file that ends with a given status.

Running one is the only proof that a platform's programs run here; whatever installed the emulator
may say what it likes. The file is one read-and-execute segment: ELF header, one program header,
a handful of machine instructions from the architecture table.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine

__all__ = ["PROBE_STATUS", "probe_program"]

PROBE_STATUS = 73  # a status that no shell, kernel or emulator gives by itself

_BASE = 0x10000
_ET_EXEC, _PT_LOAD, _R_X = 2, 1, 5


def probe_program(machine: Machine, status: int = PROBE_STATUS) -> bytes:
    """The bytes of a static executable that makes one system call: ``exit(status)``.

    ``status`` is 0 to 127. Layout: System V gABI, chapters 4 (ELF header) and 5 (program header).
    """
    order = "<" if machine.order == "little" else ">"
    wide = machine.bits == 64  # ELF has two classes
    code = _instructions(machine.exit_code, status)
    if wide:
        header, segment = struct.Struct(f"{order}HHIQQQIHHHHHH"), struct.Struct(f"{order}IIQQQQQQ")
    else:
        header, segment = struct.Struct(f"{order}HHIIIIIHHHHHH"), struct.Struct(f"{order}IIIIIIII")
    start = 16 + header.size + segment.size
    size = start + len(code)
    ident = machine.magic[:16]
    head = header.pack(
        _ET_EXEC, machine.elf_machine, 1, _BASE + start, 16 + header.size, 0, machine.elf_flags,
        16 + header.size, segment.size, 1, 0, 0, 0,
    )  # fmt: skip
    if wide:
        load = segment.pack(_PT_LOAD, _R_X, 0, _BASE, _BASE, size, size, 0x1000)
    else:
        load = segment.pack(_PT_LOAD, 0, _BASE, _BASE, size, size, _R_X, 0x1000)
    return ident + head + load + code


def _instructions(recipe: str, status: int) -> bytes:
    """Assemble a recipe of hex bytes.

    ``SS`` is the status byte, ``I<shift>:<word>`` a little-endian instruction word that takes the
    status as an immediate at that bit.
    """
    return b"".join(_instruction(part, status) for part in recipe.split())


def _instruction(part: str, status: int) -> bytes:
    if part == "SS":
        return bytes([status])
    if part.startswith("I"):
        shift, word = part[1:].split(":")
        return (int(word, 16) | status << int(shift)).to_bytes(4, "little")
    return bytes.fromhex(part)
