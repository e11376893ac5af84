"""Build ELF files of any machine, with the segments, sections and notes that a test needs.

System V gABI, chapters 4 and 5. One PT_LOAD segment covers the whole file and is loaded at :data:`BASE`,
so that addresses are offsets plus ``BASE``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.view import ByteOrder

BASE = 0x10000
EXECUTABLE, SHARED = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PT_GNU_PROPERTY, PT_PROCESSOR, PT_OTHER = 0x6474E553, 0x70000003, 0x60000000
NEEDED, STRTAB, STRSZ, SONAME, RPATH, RUNPATH = 1, 5, 10, 14, 15, 29
ISA_NEEDED, ISA_USED = 0xC0008002, 0xC0010002


@dataclass(frozen=True, kw_only=True)
class Target:
    """The class, byte order, machine, e_flags and EI_OSABI of an ELF header."""

    bits: int
    order: str
    machine: int
    flags: int = 0
    abi: int = 0

    def pack(self, format32: str, format64: str, *fields: int) -> bytes:
        prefix = "<" if self.order == "little" else ">"
        return struct.pack(prefix + (format64 if self.bits == 64 else format32), *fields)


def target_of(platform: str) -> Target:
    """Return the target of a platform."""
    machine = Platform.parse(platform).machine
    return Target(
        bits=machine.bits, order=machine.byte_order, machine=machine.e_machine, flags=machine.e_flags
    )


@dataclass(kw_only=True)
class Elf:
    """The contents of an ELF file; :meth:`build` records their offsets in :attr:`offsets`.

    Segments have their number as the key there, sections their name.
    """

    machine: str | Target = "linux/amd64"
    kind: int = SHARED
    flags: int | None = None
    abi: int = 0
    entry: int = 0
    load_flags: int = 5
    segments: Sequence[tuple[int, bytes]] = ()
    sections: Mapping[str, bytes] = field(default_factory=dict)
    dynamic: Sequence[tuple[int, str | int]] | None = None
    offsets: dict[object, int] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        return self.machine if isinstance(self.machine, Target) else target_of(self.machine)

    def build(self) -> bytes:
        target = self.target
        header_size, segment_size, section_size = (64, 56, 64) if target.bits == 64 else (52, 32, 40)
        count = 1 + len(self.segments) + (self.dynamic is not None)
        body = bytearray(header_size + count * segment_size)
        segments = [*self.segments, *self._dynamic_segments(body)]
        placed = [
            (kind, self._put(body, number, data), len(data)) for number, (kind, data) in enumerate(segments)
        ]
        shoff, shnum = self._put_sections(body) if self.sections else (0, 0)
        ident = b"\x7fELF" + bytes([target.bits // 32, 1 if target.order == "little" else 2, 1])
        header = target.pack(
            "HHIIIIIHHHHHH", "HHIQQQIHHHHHH", self.kind, target.machine, 1, self.entry, header_size, shoff,
            target.flags if self.flags is None else self.flags,
            header_size, segment_size, count, section_size, shnum, max(shnum - 1, 0),
        )  # fmt: skip
        headers = [self._program_header(*each) for each in [(PT_LOAD, 0, len(body)), *placed]]
        head = (ident + bytes([self.abi or target.abi])).ljust(16, b"\0") + header + b"".join(headers)
        body[: len(head)] = head
        return bytes(body)

    def _put(self, body: bytearray, key: object, data: bytes) -> int:
        body += bytes(-len(body) % 16)
        self.offsets[key] = len(body)
        body += data
        return self.offsets[key]

    def _program_header(self, kind: int, offset: int, size: int) -> bytes:
        extent = offset, BASE + offset, BASE + offset, size, size
        is_64_bit, alignment = self.target.bits == 64, self.target.bits // 8
        fields = (self.load_flags, *extent) if is_64_bit else (*extent, self.load_flags)
        return self.target.pack("8I", "2I6Q", kind, *fields, alignment)

    def _dynamic_segments(self, body: bytearray) -> list[tuple[int, bytes]]:
        """Put the strings of the dynamic section into the file, and return its segment."""
        if self.dynamic is None:
            return []
        strings, entries = b"\0", []
        for tag, value in self.dynamic:
            entries.append((tag, value if isinstance(value, int) else len(strings)))
            strings += b"" if isinstance(value, int) else value.encode() + b"\0"
        entries += [(STRTAB, BASE + self._put(body, "strings", strings)), (STRSZ, len(strings)), (0, 0)]
        return [(PT_DYNAMIC, b"".join(self.target.pack("2I", "2Q", *entry) for entry in entries))]

    def _put_sections(self, body: bytearray) -> tuple[int, int]:
        """Put the sections and their headers into the file; return e_shoff and e_shnum."""
        names = b"\0" + b"".join(name.encode() + b"\0" for name in [*self.sections, ".shstrtab"])
        headers = [(0,) * 10]
        for name, data in {**self.sections, ".shstrtab": names}.items():
            offset = self._put(body, name, data)
            position = names.index(b"\0" + name.encode() + b"\0") + 1
            headers.append((position, 1, 2, BASE + offset, offset, len(data), 0, 0, 1, 0))
        table = b"".join(self.target.pack("10I", "2I4Q2I2Q", *fields) for fields in headers)
        return self._put(body, "section headers", table), len(headers)


def elf(  # noqa: PLR0913 - one for each thing that an ELF file may contain
    platform: str | Target,
    *,
    interpreter: str = "",
    needed: Sequence[str] = (),
    soname: str = "",
    rpath: str = "",
    runpath: str = "",
    isa: Sequence[tuple[int, int]] = (),
    kind: int = SHARED,
) -> bytes:
    """Build a file with these names and x86 ISA properties."""
    names = [*((NEEDED, name) for name in needed), (SONAME, soname), (RPATH, rpath), (RUNPATH, runpath)]
    dynamic = [(tag, name) for tag, name in names if name]
    segments = [(PT_INTERP, interpreter.encode() + b"\0")] if interpreter else []
    file = Elf(machine=platform, kind=kind, dynamic=dynamic or None)
    if isa:
        segments.append((PT_GNU_PROPERTY, x86_note(*isa, align=file.target.bits // 8)))
    file.segments = segments
    return file.build()


def x86_note(*properties: tuple[int, int], align: int = 8) -> bytes:
    """Return ``.note.gnu.property`` with these x86 ISA properties ("Linux Extensions to gABI")."""
    padding = bytes(-12 % align)
    data = b"".join(struct.pack("<III", kind, 4, bits) + padding for kind, bits in properties)
    return struct.pack("<III", 4, len(data), 5) + b"GNU\0" + data


def go_info(version: str, modules: str, *, inline: bool = True) -> bytes:
    """Return a ``.go.buildinfo`` section as Go 1.18 and later write it."""
    header = (b"\xff Go buildinf:" + bytes([8, 2 if inline else 0])).ljust(32, b"\0")
    framed = b"<" * 16 + modules.encode() + b">" * 16 if modules else b""
    return header + b"".join(_uleb128(len(data)) + data for data in (version.encode(), framed))


def attributes(
    vendor: str, pairs: Sequence[tuple[int, int | str | bytes]], order: ByteOrder = "little"
) -> bytes:
    """Return a section of build attributes with one block for the whole file; bytes are added unchanged."""
    body = b""
    for tag, value in pairs:
        body += _uleb128(tag) + _attribute_value(value)
    name = vendor.encode() + b"\0"
    block = b"\1" + (len(body) + 5).to_bytes(4, order) + body
    size = len(block) + len(name) + 4
    return b"A" + size.to_bytes(4, order) + name + block


def _attribute_value(value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _uleb128(value)
    return value.encode() + b"\0" if isinstance(value, str) else value


def _uleb128(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
