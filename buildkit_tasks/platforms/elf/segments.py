"""Segments, addresses and sections of an ELF file (System V gABI, chapters 4 and 5).

The file is untrusted, and nothing here raises: what cannot be read is added to ``problems`` if the
file is damaged, and to ``unread_parts`` if that piece of a large file was not kept.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from buildkit_tasks.platforms.elf.model import ElfHeader
    from buildkit_tasks.platforms.elf.view import FileView

__all__ = ["ELF_HEADER_STRUCTS", "PROGRAM_HEADER_STRUCTS", "ElfFile", "Segment", "struct_variants"]

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PT_GNU_PROPERTY = 0x6474E553
PT_PROCESSOR = 0x70000003  # PT_RISCV_ATTRIBUTES; PT_MIPS_ABIFLAGS has the same number
_USED_SEGMENT_TYPES = frozenset({PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_PROPERTY, PT_PROCESSOR})

_MAX_PROGRAM_HEADERS_SIZE = 1 << 16  # the kernel's limit (load_elf_phdrs in fs/binfmt_elf.c)
_MAX_SECTIONS = 1 << 16
_MAX_SECTION_NAMES_SIZE = 1 << 20
_SHN_XINDEX = 0xFFFF
_PF_W, _PF_X = 2, 1


def struct_variants(format32: str, format64: str) -> dict[tuple[int, str], struct.Struct]:
    """Return a structure for both classes and both byte orders, by (bits, byte order)."""
    return {
        (bits, byte_order): struct.Struct(endian_prefix + field_formats)
        for bits, field_formats in ((32, format32), (64, format64))
        for byte_order, endian_prefix in (("little", "<"), ("big", ">"))
    }


ELF_HEADER_STRUCTS = struct_variants("HHIIIIIHHHHHH", "HHIQQQIHHHHHH")
"""The ELF header after e_ident: e_type to e_shstrndx."""
PROGRAM_HEADER_STRUCTS = struct_variants("IIIIIIII", "IIQQQQQQ")
"""A program header; p_flags is the second field in 64-bit files and the seventh in 32-bit ones."""
_SECTION_HEADER_STRUCTS = struct_variants("IIIIIIIIII", "IIQQQQIIQQ")
# The positions of Segment's fields in a program header.
_SEGMENT_FIELDS = {32: (0, 6, 1, 2, 4, 5, 7), 64: (0, 1, 2, 3, 5, 6, 7)}


class Segment(NamedTuple):
    """The fields of a program header that are used here."""

    p_type: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    alignment: int


class ElfFile:
    """An ELF file with its header, segments and sections."""

    __slots__ = ("_sections", "header", "load_segments", "problems", "segments", "unread_parts", "view")

    def __init__(self, view: FileView, header: ElfHeader) -> None:
        self.view = view
        self.header = header
        self.problems: list[str] = []
        self.unread_parts: list[str] = []
        self.segments = self._read_segments()
        self.load_segments = [segment for segment in self.segments if segment.p_type == PT_LOAD]
        self._sections: tuple[list[tuple[int, ...]], bytes] | None = None

    def read(self, label: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset``; report it if there are fewer."""
        data = self.view.read_at(offset, size)
        if len(data) < size:
            self.report_unreadable(label, offset, size)
        return data

    def report_unreadable(self, label: str, offset: int, size: int) -> None:
        """Record that ``label`` cannot be read: the file is too short, or that piece was not kept."""
        if offset + size > self.view.size:
            self.problems.append(
                f"{label} at byte {offset}: past the end of the file, which has {self.view.size} bytes"
            )
        else:
            self.unread_parts.append(
                f"{label} at {_format_offset(offset)}: that part of the file was not kept"
            )

    @property
    def is_complete(self) -> bool:
        """Whether every byte of the file is in memory."""
        return len(self.view.read_at(0, self.view.size)) == self.view.size

    def _read_segments(self) -> list[Segment]:
        header, header_struct = self.header, PROGRAM_HEADER_STRUCTS[self.header.bits, self.header.byte_order]
        if not header.phnum:
            return []
        if header.phentsize != header_struct.size:
            self.problems.append(f"program headers of {header.phentsize} bytes each")
            return []
        size = header.phnum * header_struct.size
        if size > _MAX_PROGRAM_HEADERS_SIZE:
            self.problems.append(f"{header.phnum} program headers: the kernel does not load that many")
            size = _MAX_PROGRAM_HEADERS_SIZE // header_struct.size * header_struct.size
        data = self.read("program headers", header.phoff, size)
        program_headers = header_struct.iter_unpack(
            data[: len(data) // header_struct.size * header_struct.size]
        )
        used_headers = (fields for fields in program_headers if fields[0] in _USED_SEGMENT_TYPES)
        return [
            Segment(*(fields[index] for index in _SEGMENT_FIELDS[header.bits])) for fields in used_headers
        ]

    def find_segment(self, p_type: int) -> Segment | None:
        """Return the first segment of a type, or None."""
        return next((segment for segment in self.segments if segment.p_type == p_type), None)

    def map_address(self, address: int) -> tuple[int, int] | None:
        """Return the file offset that is loaded at an address, and how many bytes of its segment follow."""
        for segment in self.load_segments:
            segment_offset = address - segment.address
            if 0 <= segment_offset < segment.file_size:
                return segment.offset + segment_offset, segment.file_size - segment_offset
        return None

    def read_address(self, address: int, size: int) -> bytes:
        """Return up to ``size`` bytes at an address; bytes beyond p_filesz are zero (``.bss``)."""
        for segment in self.load_segments:
            segment_offset = address - segment.address
            if 0 <= segment_offset < max(segment.file_size, segment.memory_size):
                file_bytes = max(0, min(size, segment.file_size - segment_offset))
                data = self.view.read_at(segment.offset + segment_offset, file_bytes)
                zero_bytes = min(size, segment.memory_size - segment_offset) - file_bytes
                return data + bytes(max(0, zero_bytes)) if len(data) == file_bytes else data
        return b""

    def find_data_segment(self) -> Segment | None:
        """Return the first segment that is writable and not executable, or None."""
        return next((s for s in self.load_segments if s.flags & (_PF_W | _PF_X) == _PF_W), None)

    @property
    def has_sections(self) -> bool:
        """Whether there is a section header table; stripped and packed files may have none."""
        return bool(self.header.shoff)

    def find_section(self, name: bytes) -> tuple[int, int] | None:
        """Return offset and size of the section of that name, or None."""
        section_headers, names = self._load_sections()
        terminated_name = name + b"\0"
        if terminated_name not in names:
            return None
        for section_header in section_headers:
            if names.startswith(terminated_name, section_header[0]):
                return section_header[4], section_header[5]
        return None

    def _load_sections(self) -> tuple[list[tuple[int, ...]], bytes]:
        if self._sections is None:
            section_headers = self._read_section_headers()
            self._sections = section_headers, self._read_section_names(section_headers)
        return self._sections

    def _read_section_headers(self) -> list[tuple[int, ...]]:
        header, header_struct = self.header, _SECTION_HEADER_STRUCTS[self.header.bits, self.header.byte_order]
        if not header.shoff:
            return []
        if header.shentsize != header_struct.size:
            self.problems.append(f"section headers of {header.shentsize} bytes each")
            return []
        count = header.shnum or self._read_section_count(header_struct)
        if count > _MAX_SECTIONS:
            self.problems.append(f"{count} sections: only {_MAX_SECTIONS} of them were read")
            count = _MAX_SECTIONS
        data = self.read("section headers", header.shoff, count * header_struct.size)
        return list(header_struct.iter_unpack(data)) if len(data) == count * header_struct.size else []

    def _read_section_count(self, header_struct: struct.Struct) -> int:
        """Return the count from sh_size of section 0, where it is if e_shnum is too small for it."""
        first_header = self.view.read_at(self.header.shoff, header_struct.size)
        return header_struct.unpack(first_header)[5] if len(first_header) == header_struct.size else 1

    def _read_section_names(self, section_headers: list[tuple[int, ...]]) -> bytes:
        if not section_headers:
            return b""
        index = self.header.shstrndx
        if index == _SHN_XINDEX:
            index = section_headers[0][6]
        if index >= len(section_headers):
            self.problems.append(f"section names in section {index} of {len(section_headers)}")
            return b""
        offset, size = section_headers[index][4:6]
        return self.read("section names", offset, min(size, _MAX_SECTION_NAMES_SIZE))


def _format_offset(offset: int) -> str:
    mebibyte = 1 << 20
    return f"{offset / mebibyte:.0f} MiB" if offset >= mebibyte else f"byte {offset}"
