"""What an ELF file says about itself: the machine it was made for, who loads it, what it needs.

System V gABI, chapter 4 ("ELF Header", "Sections") and chapter 5 ("Program Header", "Dynamic
Section"). A header that is wrong is a :class:`MalformedImage`; damage further on is collected, as a
loader may never look there. Files are hostile: every count is capped, and offsets that lead nowhere
give no bytes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms.elf.model import Binary, ElfHeader
from buildkit_tasks.platforms.elf.segments import (
    PROGRAM_HEADER_STRUCTS,
    PT_DYNAMIC,
    PT_INTERP,
    ElfFile,
    struct_variants,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.platforms.elf.view import ByteOrder, FileView

__all__ = [
    "ELF_MAGIC",
    "EXECUTABLE_TYPES",
    "read_binary",
    "read_elf_header",
    "read_interpreter",
]

ELF_MAGIC = b"\x7fELF"
EXECUTABLE_TYPES = frozenset({2, 3})  # ET_EXEC, ET_DYN: what a kernel starts
_BITS_BY_CLASS = {1: 32, 2: 64}
_BYTE_ORDERS: dict[int, ByteOrder] = {1: "little", 2: "big"}
_EI_NIDENT = 16
_PT_INTERP = 3
_MAX_INTERPRETER_SIZE = 4096  # PATH_MAX, which the kernel allows at most

# e_type to e_shstrndx.
_ELF_HEADER_STRUCTS = struct_variants("HHIIIIIHHHHHH", "HHIQQQIHHHHHH")
_DYNAMIC_ENTRY_STRUCTS = struct_variants("II", "QQ")
_P_OFFSET_FIELD, _P_FILESZ_FIELD = {32: 1, 64: 2}, {32: 4, 64: 5}

_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 10, 14, 15, 29
_USED_TAGS = frozenset({_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH})
_MAX_DYNAMIC_SIZE = 1 << 18  # bytes; the longest sections have some hundred entries
_MAX_STRINGS = 2048  # libraries and paths that one file may name
_MAX_STRING_SIZE = 4096


def read_elf_header(data: bytes) -> ElfHeader:
    """Read the header from a file's first bytes; 64 are always enough."""
    if data[:4] != ELF_MAGIC:
        raise MalformedImage("no ELF file: it does not start with 7f 45 4c 46")
    if len(data) < _EI_NIDENT:
        raise MalformedImage("a truncated ELF header")
    bits, byte_order = _BITS_BY_CLASS.get(data[4]), _BYTE_ORDERS.get(data[5])
    if bits is None or byte_order is None or data[6] != 1:
        raise MalformedImage(f"an ELF header of class {data[4]}, byte order {data[5]}, version {data[6]}")
    header_struct = _ELF_HEADER_STRUCTS[bits, byte_order]
    if len(data) < _EI_NIDENT + header_struct.size:
        raise MalformedImage("a truncated ELF header")
    (
        e_type, e_machine, _, entry_point, phoff, shoff, e_flags, _, phentsize, phnum, shentsize, shnum,
        shstrndx,
    ) = header_struct.unpack_from(data, _EI_NIDENT)  # fmt: skip
    return ElfHeader(
        bits=bits, byte_order=byte_order, os_abi=data[7], e_type=e_type, e_machine=e_machine, e_flags=e_flags,
        entry_point=entry_point, phoff=phoff, phentsize=phentsize, phnum=phnum,
        shoff=shoff, shentsize=shentsize, shnum=shnum, shstrndx=shstrndx,
    )  # fmt: skip


def read_binary(view: FileView) -> Binary:
    """Read a whole ELF file. Raises :class:`MalformedImage` only if its header is malformed."""
    from buildkit_tasks.platforms.elf.isa_evidence import collect_evidence

    header = read_elf_header(view.read_at(0, 64))
    elf = ElfFile(view, header)
    strings = _read_dynamic_strings(elf)
    interpreter, exec_error = _read_interpreter_segment(elf)
    return Binary(
        header=header,
        interpreter=interpreter,
        exec_error=exec_error,
        is_dynamic=strings is not None,
        needed=tuple(strings[_DT_NEEDED]) if strings else (),
        soname=next(iter(strings[_DT_SONAME]), "") if strings else "",
        rpath=_split_paths(strings[_DT_RPATH]) if strings else (),
        runpath=_split_paths(strings[_DT_RUNPATH]) if strings else (),
        evidence=tuple(collect_evidence(elf)),
        problems=tuple(elf.problems),
        unread_parts=tuple(elf.unread_parts),
    )


def _read_interpreter_segment(elf: ElfFile) -> tuple[str, str]:
    """The loader's path, and what is wrong with it."""
    segment = elf.find_segment(PT_INTERP)
    if segment is None or not segment.file_size:  # a file of debugging symbols has emptied segments
        return "", ""
    if not 1 < segment.file_size <= _MAX_INTERPRETER_SIZE:
        return "", f"an interpreter path of {segment.file_size} bytes"
    raw = elf.read("the interpreter's path", segment.offset, segment.file_size)
    if len(raw) < segment.file_size:
        return "", ""  # which the layout has noted
    if raw[-1] != 0:
        return "", "an interpreter path without its end"
    return _decode_string(raw), "" if raw[0] else "an empty interpreter path"


def _split_paths(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(":"))


def _read_dynamic_strings(elf: ElfFile) -> dict[int, list[str]] | None:
    """The strings of the dynamic section by their tags, or None where there is no such section."""
    segment = elf.find_segment(PT_DYNAMIC)
    if segment is None:
        return None
    entry_struct = _DYNAMIC_ENTRY_STRUCTS[elf.header.bits, elf.header.byte_order]
    size_to_read = min(segment.file_size, _MAX_DYNAMIC_SIZE)
    data = elf.read("the dynamic section", segment.offset, size_to_read)
    entries, strtab_address, strtab_size = [], 0, 0
    for tag, value in entry_struct.iter_unpack(data[: len(data) // entry_struct.size * entry_struct.size]):
        if tag == _DT_NULL:
            break
        if tag == _DT_STRTAB:
            strtab_address = value
        elif tag == _DT_STRSZ:
            strtab_size = value
        elif tag in _USED_TAGS:
            entries.append((tag, value))
    if len(data) < size_to_read and not (strtab_address and strtab_size):
        entries = []  # where the names are is in the part that is missing, and that was said
    return _resolve_strings(elf, entries, strtab_address, strtab_size)


def _resolve_strings(
    elf: ElfFile, entries: list[tuple[int, int]], strtab_address: int, strtab_size: int
) -> dict[int, list[str]]:
    strings: dict[int, list[str]] = {_DT_NEEDED: [], _DT_SONAME: [], _DT_RPATH: [], _DT_RUNPATH: []}
    if not entries:
        return strings
    if len(entries) > _MAX_STRINGS:
        elf.problems.append(f"{len(entries)} names in the dynamic section: only {_MAX_STRINGS} were read")
    string_table = elf.map_address(strtab_address)
    if string_table is None:
        elf.problems.append(f"the dynamic section's strings are at {strtab_address:#x}, which is not loaded")
        return strings
    for tag, offset in entries[:_MAX_STRINGS]:
        max_size = min(strtab_size - offset, string_table[1] - offset, _MAX_STRING_SIZE)
        raw = elf.view.read_at(string_table[0] + offset, max_size) if max_size > 0 else b""
        text, terminator, _ = raw.partition(b"\0")
        if terminator:
            strings[tag].append(text.decode("utf-8", "surrogateescape"))
        elif max_size > 0 and len(raw) < max_size:
            elf.report_unreadable("strings of the dynamic section", string_table[0] + offset, max_size)
        else:
            elf.problems.append(f"a name in the dynamic section has no end within {max(max_size, 0)} bytes")
    return strings


def _decode_string(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def read_interpreter(program: bytes | BinaryIO) -> str | None:
    """The program's loader (PT_INTERP), or None for one that needs none: a static program."""
    stream = io.BytesIO(program) if isinstance(program, bytes) else program
    stream.seek(0)
    header = read_elf_header(stream.read(64))
    header_struct = PROGRAM_HEADER_STRUCTS[header.bits, header.byte_order]
    if header.phnum and header.phentsize != header_struct.size:
        raise MalformedImage(f"ELF program headers of {header.phentsize} bytes each")
    for index in range(header.phnum):
        program_header = _read_at(stream, header.phoff + index * header.phentsize, header_struct.size)
        if len(program_header) < header_struct.size:
            raise MalformedImage("a truncated ELF header")
        fields = header_struct.unpack(program_header)
        if fields[0] == _PT_INTERP:
            return _read_interpreter_path(
                stream, fields[_P_OFFSET_FIELD[header.bits]], fields[_P_FILESZ_FIELD[header.bits]]
            )
    return None


def _read_interpreter_path(stream: BinaryIO, offset: int, size: int) -> str:
    if not 1 < size <= _MAX_INTERPRETER_SIZE:
        raise MalformedImage(f"an ELF interpreter path of {size} bytes")
    raw = _read_at(stream, offset, size)
    if len(raw) != size or raw[-1] != 0:
        raise MalformedImage("an ELF interpreter path without its end")
    return _decode_string(raw)


def _read_at(stream: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 1 << 63:
        raise MalformedImage(f"an ELF file offset of {offset}")
    stream.seek(offset)
    return stream.read(size)
