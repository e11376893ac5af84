"""Build a minimal program of an architecture, which exits with a given status.

Running one is the only proof that a platform's programs run here; the exit status of an emulator's
installer proves nothing. The file is one readable and executable segment: the ELF header, one program
header, and a few instructions from the architecture table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.platforms.elf.segments import ELF_HEADER_STRUCTS, PROGRAM_HEADER_STRUCTS, PT_LOAD

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine

__all__ = ["PROBE_STATUS", "build_probe_program"]

PROBE_STATUS = 73  # an exit status that shells, kernels and emulators do not use

_LOAD_ADDRESS, _PAGE_SIZE = 0x10000, 0x1000
_ET_EXEC, _PF_R_X = 2, 5


def build_probe_program(machine: Machine, status: int = PROBE_STATUS) -> bytes:
    """Return a static executable whose only system call is ``exit(status)``; ``status`` is 0 to 127.

    Its format is that of the System V gABI, chapters 4 ("ELF Header") and 5 ("Program Header").
    """
    variant = machine.bits, machine.byte_order
    header_struct, segment_struct = ELF_HEADER_STRUCTS[variant], PROGRAM_HEADER_STRUCTS[variant]
    code = _assemble_instructions(machine.exit_instructions, status)
    header_size = 16 + header_struct.size
    code_offset = header_size + segment_struct.size
    elf_header = header_struct.pack(
        _ET_EXEC, machine.e_machine, 1, _LOAD_ADDRESS + code_offset, header_size, 0, machine.e_flags,
        header_size, segment_struct.size, 1, 0, 0, 0,
    )  # fmt: skip
    extent = 0, _LOAD_ADDRESS, _LOAD_ADDRESS, code_offset + len(code), code_offset + len(code)
    fields = (_PF_R_X, *extent) if machine.bits == 64 else (*extent, _PF_R_X)
    program_header = segment_struct.pack(PT_LOAD, *fields, _PAGE_SIZE)
    return machine.magic[:16] + elf_header + program_header + code


def _assemble_instructions(template: str, status: int) -> bytes:
    """Assemble a template of hexadecimal bytes.

    ``SS`` is the status byte; ``I<shift>:<word>`` is a little-endian instruction word with the status
    as an immediate operand at bit ``shift``.
    """
    return b"".join(_assemble_instruction(part, status) for part in template.split())


def _assemble_instruction(part: str, status: int) -> bytes:
    if part == "SS":
        return bytes([status])
    if part.startswith("I"):
        shift, word = part[1:].split(":")
        return (int(word, 16) | status << int(shift)).to_bytes(4, "little")
    return bytes.fromhex(part)
