"""Small ELF files of any machine, with a loader, libraries and notes as they are asked for.

System V gABI, chapter 5. The file is one PT_LOAD segment, so that addresses are offsets above a base;
what is not asked for is not there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from buildkit_tasks.platforms import Platform

EXECUTABLE, SHARED = 2, 3
_BASE = 0x10000
_LOAD, _DYNAMIC, _INTERP, _PROPERTY = 1, 2, 3, 0x6474E553
_NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _RUNPATH = 1, 5, 10, 14, 15, 29
ISA_NEEDED, ISA_USED = 0xC0008002, 0xC0010002


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An ELF header's class, byte order and machine."""

    bits: int
    order: str
    machine: int
    flags: int = 0
    abi: int = 0

    @property
    def sign(self) -> str:
        return "<" if self.order == "little" else ">"

    @property
    def word(self) -> str:
        return "Q" if self.bits == 64 else "I"


def shape_of(platform: str) -> Shape:
    """The shape of a platform's programs."""
    row = Platform.parse(platform).machine
    return Shape(bits=row.bits, order=row.byte_order, machine=row.e_machine, flags=row.e_flags)


def elf(  # noqa: PLR0913 - one for each thing that an ELF file may say
    platform: str | Shape,
    *,
    interpreter: str = "",
    needed: Sequence[str] = (),
    soname: str = "",
    rpath: str = "",
    runpath: str = "",
    isa: Sequence[tuple[int, int]] = (),
    kind: int = SHARED,
) -> bytes:
    """A file that says just this of itself; ``isa`` are x86 ISA properties with their bits."""
    shape = shape_of(platform) if isinstance(platform, str) else platform
    names = [(_NEEDED, name) for name in needed]
    names += [pair for pair in ((_SONAME, soname), (_RPATH, rpath), (_RUNPATH, runpath)) if pair[1]]
    parts: list[tuple[int, bytes]] = []
    if interpreter:
        parts.append((_INTERP, interpreter.encode() + b"\0"))
    if isa:
        parts.append((_PROPERTY, _note(shape, isa)))
    strings, table = _strings([text for _, text in names])
    dynamic = bool(names)
    count = 1 + len(parts) + dynamic
    header, segment = _sizes(shape)
    at = header + count * segment
    placed = []
    for number, data in [*parts, (0, table)]:
        at += -at % 8
        placed.append((number, at, data))
        at += len(data)
    if dynamic:
        at += -at % 8
        tags = [(tag, strings[text]) for tag, text in names]
        tags += [(_STRTAB, _BASE + placed[-1][1]), (_STRSZ, len(table)), (0, 0)]
        entries = b"".join(struct.pack(f"{shape.sign}2{shape.word}", *pair) for pair in tags)
        placed.append((_DYNAMIC, at, entries))
        at += len(entries)
    segments = [_segment(shape, _LOAD, 0, at)]
    segments += [_segment(shape, number, where, len(data)) for number, where, data in placed if number]
    content = bytearray(at)
    content[:header] = _header(shape, kind, len(segments))
    content[header : header + len(segments) * segment] = b"".join(segments)
    for _, where, data in placed:
        content[where : where + len(data)] = data
    return bytes(content)


def _strings(texts: Sequence[str]) -> tuple[dict[str, int], bytes]:
    table, places = b"\0", {}
    for text in texts:
        places[text] = len(table)
        table += text.encode() + b"\0"
    return places, table


def _sizes(shape: Shape) -> tuple[int, int]:
    return (64, 56) if shape.bits == 64 else (52, 32)


def _header(shape: Shape, kind: int, segments: int) -> bytes:
    header, segment = _sizes(shape)
    data = 1 if shape.order == "little" else 2
    ident = b"\x7fELF" + bytes([shape.bits // 32, data, 1, shape.abi]) + bytes(8)
    fields = (kind, shape.machine, 1, _BASE, header, 0, shape.flags, header, segment, segments, 0, 0, 0)
    return ident + struct.pack(f"{shape.sign}HHI3{shape.word}I6H", *fields)


def _segment(shape: Shape, kind: int, at: int, size: int) -> bytes:
    if shape.bits == 64:
        return struct.pack(f"{shape.sign}2I6Q", kind, 4, at, _BASE + at, _BASE + at, size, size, 8)
    return struct.pack(f"{shape.sign}8I", kind, at, _BASE + at, _BASE + at, size, size, 4, 8)


def _note(shape: Shape, isa: Sequence[tuple[int, int]]) -> bytes:
    """``.note.gnu.property`` ("Linux Extensions to gABI")."""
    pad = bytes(4 if shape.bits == 64 else 0)
    properties = b"".join(struct.pack("<III", kind, 4, bits) + pad for kind, bits in isa)
    return struct.pack("<III", 4, len(properties), 5) + b"GNU\0" + properties
