"""Where things lie in an ELF file: segments, addresses and sections, read once and never trusted.

System V gABI, chapters 4 and 5. Nothing here raises: what cannot be read is noted among the
problems when the file itself is at fault, and as unread when that piece of it was not kept.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from buildkit_tasks.platforms.elf.model import ElfHeader
    from buildkit_tasks.platforms.elf.view import View

__all__ = ["FORMS", "Layout", "Segment", "forms"]

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PT_GNU_PROPERTY = 0x6474E553
PT_PROCESSOR = 0x70000003  # PT_RISCV_ATTRIBUTES; PT_MIPS_ABIFLAGS has the same number
_KEPT = frozenset({PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_PROPERTY, PT_PROCESSOR})

_MAX_SEGMENT_BYTES = 1 << 16  # more than that, and the kernel does not load the program (binfmt_elf.c)
_MAX_SECTIONS = 1 << 16
_MAX_NAMES = 1 << 20
_WRITE, _EXECUTE = 2, 1


def forms(layout32: str, layout64: str) -> dict[tuple[int, str], struct.Struct]:
    """One structure in its four shapes, by class and byte order."""
    return {
        (bits, order): struct.Struct(sign + layout)
        for bits, layout in ((32, layout32), (64, layout64))
        for order, sign in (("little", "<"), ("big", ">"))
    }


FORMS = forms("IIIIIIII", "IIQQQQQQ")
"""A program header; its fields have another order in the two classes."""
_SECTIONS = forms("IIIIIIIIII", "IIQQQQIIQQ")


class Segment(NamedTuple):
    """A program header's fields that are used here."""

    kind: int
    flags: int
    offset: int
    address: int
    size: int
    memory: int
    align: int


class Layout:
    """A file, its header, and what its tables say of the rest."""

    __slots__ = ("_sections", "header", "loads", "problems", "segments", "unread", "view")

    def __init__(self, view: View, header: ElfHeader) -> None:
        self.view = view
        self.header = header
        self.problems: list[str] = []
        self.unread: list[str] = []
        self.segments = self._read_segments()
        self.loads = [segment for segment in self.segments if segment.kind == PT_LOAD]
        self._sections: tuple[list[tuple[int, ...]], bytes] | None = None

    def read(self, what: str, offset: int, size: int) -> bytes:
        """The bytes there; fewer, with a note, where the file ends or was not kept."""
        data = self.view.at(offset, size)
        if len(data) < size:
            self.missing(what, offset, size)
        return data

    def missing(self, what: str, offset: int, size: int) -> None:
        """Note that ``what`` cannot be read, and whose fault that is."""
        if offset + size > self.view.size:
            self.problems.append(f"{what} at byte {offset} goes past the file's {self.view.size} bytes")
        else:
            self.unread.append(f"{what} at {_place(offset)}: that part of the file was not kept")

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the file is at hand."""
        return len(self.view.at(0, self.view.size)) == self.view.size

    def _read_segments(self) -> list[Segment]:
        header, form = self.header, FORMS[self.header.bits, self.header.order]
        if not header.phnum:
            return []
        if header.phentsize != form.size:
            self.problems.append(f"program headers of {header.phentsize} bytes each")
            return []
        size = header.phnum * form.size
        if size > _MAX_SEGMENT_BYTES:
            self.problems.append(f"{header.phnum} program headers: no kernel loads that many")
            size = _MAX_SEGMENT_BYTES // form.size * form.size
        data = self.read("program headers", header.phoff, size)
        rows = form.iter_unpack(data[: len(data) // form.size * form.size])
        if header.bits == 64:  # ELF has two classes
            return [Segment(r[0], r[1], r[2], r[3], r[5], r[6], r[7]) for r in rows if r[0] in _KEPT]
        return [Segment(r[0], r[6], r[1], r[2], r[4], r[5], r[7]) for r in rows if r[0] in _KEPT]

    def of_kind(self, kind: int) -> Segment | None:
        """The first segment of a kind."""
        return next((segment for segment in self.segments if segment.kind == kind), None)

    def where(self, address: int) -> tuple[int, int] | None:
        """The file offset that is loaded at an address, and how many bytes follow it there."""
        for segment in self.loads:
            into = address - segment.address
            if 0 <= into < segment.size:
                return segment.offset + into, segment.size - into
        return None

    def at_address(self, address: int, size: int) -> bytes:
        """What is loaded at an address; a segment's end that is not in the file is zeros (``.bss``)."""
        for segment in self.loads:
            into = address - segment.address
            if 0 <= into < max(segment.size, segment.memory):
                filed = max(0, min(size, segment.size - into))
                data = self.view.at(segment.offset + into, filed)
                zeros = min(size, segment.memory - into) - filed
                return data + bytes(max(0, zeros)) if len(data) == filed else data
        return b""

    def data_segment(self) -> Segment | None:
        """The first segment that is writable and not executable."""
        return next((s for s in self.loads if s.flags & (_WRITE | _EXECUTE) == _WRITE), None)

    @property
    def has_sections(self) -> bool:
        """Whether the file says that it has sections; a stripped or packed one may have none."""
        return bool(self.header.shoff)

    def section(self, name: bytes) -> tuple[int, int] | None:
        """Offset and size of the section of that name, or None."""
        sections, names = self._named_sections()
        wanted = name + b"\0"
        if wanted not in names:
            return None
        for row in sections:
            if names.startswith(wanted, row[0]):
                return row[4], row[5]
        return None

    def _named_sections(self) -> tuple[list[tuple[int, ...]], bytes]:
        if self._sections is None:
            rows = self._section_rows()
            self._sections = rows, self._names(rows)
        return self._sections

    def _section_rows(self) -> list[tuple[int, ...]]:
        header, form = self.header, _SECTIONS[self.header.bits, self.header.order]
        if not header.shoff:
            return []
        if header.shentsize != form.size:
            self.problems.append(f"section headers of {header.shentsize} bytes each")
            return []
        count = header.shnum or self._section_count(form)
        if count > _MAX_SECTIONS:
            self.problems.append(f"{count} sections: only {_MAX_SECTIONS} of them were read")
            count = _MAX_SECTIONS
        data = self.read("section headers", header.shoff, count * form.size)
        return list(form.iter_unpack(data)) if len(data) == count * form.size else []

    def _section_count(self, form: struct.Struct) -> int:
        """The count of a file with so many sections that the header has no room for it."""
        first = self.view.at(self.header.shoff, form.size)
        return form.unpack(first)[5] if len(first) == form.size else 1

    def _names(self, rows: list[tuple[int, ...]]) -> bytes:
        if not rows:
            return b""
        index = rows[0][6] if self.header.shstrndx == 0xFFFF else self.header.shstrndx  # SHN_XINDEX
        if index >= len(rows):
            self.problems.append(f"section names in section {index} of {len(rows)}")
            return b""
        return self.read("section names", rows[index][4], min(rows[index][5], _MAX_NAMES))


def _place(offset: int) -> str:
    megabyte = 1 << 20
    return f"{offset / megabyte:.0f} MiB" if offset >= megabyte else f"byte {offset}"
