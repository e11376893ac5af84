"""The header of an ELF file: which machine a program was made for, and who loads it.

System V gABI, chapter 4 ("ELF Header") and chapter 5 ("Program Header"). Only what tells
architectures apart is read; every problem is a :class:`MalformedImage`.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import Machine, machine_of_elf

__all__ = ["ELF_MAGIC", "EXECUTABLE_TYPES", "ElfHeader", "interpreter", "read_elf"]

ELF_MAGIC = b"\x7fELF"
EXECUTABLE_TYPES = frozenset({2, 3})  # ET_EXEC, ET_DYN: what a kernel starts
_BITS = {1: 32, 2: 64}
_ORDER = {1: "little", 2: "big"}
_IDENT = 16
_PT_INTERP = 3
_MAX_INTERPRETER = 4096  # PATH_MAX, which the kernel allows at most

# e_type to e_phnum, then one program header with its fields in the order they have.
_HEADER = {32: "HHIIIIIHHH", 64: "HHIQQQIHHH"}
_SEGMENT = {32: "IIIIIIII", 64: "IIQQQQQQ"}
_OFFSET, _FILE_SIZE = {32: 1, 64: 2}, {32: 4, 64: 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfHeader:
    """The fields of an ELF header by their meaning; ``type`` is e_type, ``abi`` EI_OSABI."""

    bits: int
    order: str
    abi: int
    type: int
    machine: int
    flags: int
    entry: int
    phoff: int
    phentsize: int
    phnum: int

    @property
    def row(self) -> Machine | None:
        """The architecture table's row, or None for a machine that is not in it."""
        elf_class = next(key for key, bits in _BITS.items() if bits == self.bits)
        elf_data = next(key for key, order in _ORDER.items() if order == self.order)
        return machine_of_elf(elf_class, elf_data, self.machine)

    def describe(self) -> str:
        """Say it in words: ``ELF 64-bit little-endian, machine 62 (amd64)``."""
        name = self.row.architecture if self.row else "unknown"
        return f"ELF {self.bits}-bit {self.order}-endian, machine {self.machine} ({name})"


def read_elf(data: bytes) -> ElfHeader:
    """Read the header from a file's first bytes; 64 are always enough."""
    if data[:4] != ELF_MAGIC:
        raise MalformedImage("no ELF file: it does not start with 7f 45 4c 46")
    if len(data) < _IDENT:
        raise MalformedImage("a truncated ELF header")
    bits, order = _BITS.get(data[4]), _ORDER.get(data[5])
    if bits is None or order is None or data[6] != 1:
        raise MalformedImage(f"an ELF header of class {data[4]}, byte order {data[5]}, version {data[6]}")
    fields = _unpack(_HEADER[bits], order, data[_IDENT:])
    kind, machine, _, entry, phoff, _, flags, _, phentsize, phnum = fields
    return ElfHeader(
        bits=bits, order=order, abi=data[7], type=kind, machine=machine, flags=flags,
        entry=entry, phoff=phoff, phentsize=phentsize, phnum=phnum,
    )  # fmt: skip


def _unpack(layout: str, order: str, data: bytes) -> tuple[int, ...]:
    form = struct.Struct(("<" if order == "little" else ">") + layout)
    if len(data) < form.size:
        raise MalformedImage("a truncated ELF header")
    return form.unpack(data[: form.size])


def interpreter(program: bytes | BinaryIO) -> str | None:
    """The program's loader (PT_INTERP), or None for one that needs none: a static program."""
    stream = io.BytesIO(program) if isinstance(program, bytes) else program
    stream.seek(0)
    header = read_elf(stream.read(64))
    form = _SEGMENT[header.bits]
    if header.phnum and header.phentsize != struct.calcsize("=" + form):
        raise MalformedImage(f"ELF program headers of {header.phentsize} bytes each")
    for number in range(header.phnum):
        segment = _unpack(form, header.order, _at(stream, header.phoff + number * header.phentsize, 56))
        if segment[0] == _PT_INTERP:
            return _path(stream, segment[_OFFSET[header.bits]], segment[_FILE_SIZE[header.bits]])
    return None


def _path(stream: BinaryIO, offset: int, size: int) -> str:
    if not 1 < size <= _MAX_INTERPRETER:
        raise MalformedImage(f"an ELF interpreter path of {size} bytes")
    raw = _at(stream, offset, size)
    if len(raw) != size or raw[-1] != 0:
        raise MalformedImage("an ELF interpreter path without its end")
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _at(stream: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 1 << 63:
        raise MalformedImage(f"an ELF file offset of {offset}")
    stream.seek(offset)
    return stream.read(size)
