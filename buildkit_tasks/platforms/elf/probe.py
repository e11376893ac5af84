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

__all__ = ["PROBE_STATUS", "build_probe_program"]

PROBE_STATUS = 73  # a status that no shell, kernel or emulator gives by itself

_LOAD_ADDRESS = 0x10000
_ET_EXEC, _PT_LOAD, _R_X = 2, 1, 5


def build_probe_program(machine: Machine, status: int = PROBE_STATUS) -> bytes:
    """The bytes of a static executable that makes one system call: ``exit(status)``.

    ``status`` is 0 to 127. Layout: System V gABI, chapters 4 (ELF header) and 5 (program header).
    """
    endian_prefix = "<" if machine.byte_order == "little" else ">"
    is_64_bit = machine.bits == 64  # ELF has two classes
    code = _assemble_instructions(machine.exit_instructions, status)
    if is_64_bit:
        header_struct, segment_struct = (
            struct.Struct(f"{endian_prefix}HHIQQQIHHHHHH"),
            struct.Struct(f"{endian_prefix}IIQQQQQQ"),
        )
    else:
        header_struct, segment_struct = (
            struct.Struct(f"{endian_prefix}HHIIIIIHHHHHH"),
            struct.Struct(f"{endian_prefix}IIIIIIII"),
        )
    code_offset = 16 + header_struct.size + segment_struct.size
    size = code_offset + len(code)
    ident = machine.magic[:16]
    elf_header = header_struct.pack(
        _ET_EXEC, machine.e_machine, 1, _LOAD_ADDRESS + code_offset, 16 + header_struct.size, 0,
        machine.e_flags,
        16 + header_struct.size, segment_struct.size, 1, 0, 0, 0,
    )  # fmt: skip
    if is_64_bit:
        program_header = segment_struct.pack(
            _PT_LOAD, _R_X, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000
        )
    else:
        program_header = segment_struct.pack(
            _PT_LOAD, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, _R_X, 0x1000
        )
    return ident + elf_header + program_header + code


def _assemble_instructions(template: str, status: int) -> bytes:
    """Assemble a recipe of hex bytes.

    ``SS`` is the status byte, ``I<shift>:<word>`` a little-endian instruction word that takes the
    status as an immediate at that bit.
    """
    return b"".join(_assemble_instruction(part, status) for part in template.split())


def _assemble_instruction(part: str, status: int) -> bytes:
    if part == "SS":
        return bytes([status])
    if part.startswith("I"):
        shift, word = part[1:].split(":")
        return (int(word, 16) | status << int(shift)).to_bytes(4, "little")
    return bytes.fromhex(part)
