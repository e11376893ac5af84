"""Read an ELF file: its machine, its interpreter and the libraries that it needs.

System V gABI, chapter 4 ("ELF Header", "Sections") and chapter 5 ("Program Header", "Dynamic
Section"). A malformed header raises :class:`MalformedImage`; damage further on is collected, because a
loader may never read it. Files are untrusted: every count is limited, and reads beyond the end return
no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms.elf.model import Binary, ElfHeader
from buildkit_tasks.platforms.elf.segments import (
    ELF_HEADER_STRUCTS,
    PT_DYNAMIC,
    PT_INTERP,
    ElfFile,
    struct_variants,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.platforms.elf.view import ByteOrder, FileView

__all__ = ["ELF_MAGIC", "EXECUTABLE_TYPES", "read_binary", "read_elf_header"]

ELF_MAGIC = b"\x7fELF"
EXECUTABLE_TYPES = frozenset({2, 3})  # ET_EXEC and ET_DYN, the only types that the kernel starts
_BITS_BY_CLASS = {1: 32, 2: 64}
_BYTE_ORDERS: dict[int, ByteOrder] = {1: "little", 2: "big"}
_EI_NIDENT = 16
_MAX_INTERPRETER_SIZE = 4096  # PATH_MAX, the kernel's limit

_DYNAMIC_ENTRY_STRUCTS = struct_variants("II", "QQ")
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 10, 14, 15, 29
_USED_TAGS = frozenset({_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH})
_MAX_DYNAMIC_SIZE = 1 << 18  # bytes; the longest sections have a few hundred entries
_MAX_STRINGS = 2048  # libraries and paths that one file may name
_MAX_STRING_SIZE = 4096


def read_elf_header(data: bytes) -> ElfHeader:
    """Read the header from a file's first bytes; 64 are always enough.

    Raise :class:`MalformedImage` for anything else.
    """
    if data[:4] != ELF_MAGIC:
        raise MalformedImage("not an ELF file: it does not start with 7f 45 4c 46")
    if len(data) < _EI_NIDENT:
        raise MalformedImage("a truncated ELF header")
    bits, byte_order = _BITS_BY_CLASS.get(data[4]), _BYTE_ORDERS.get(data[5])
    if bits is None or byte_order is None or data[6] != 1:
        raise MalformedImage(f"an ELF header of class {data[4]}, byte order {data[5]}, version {data[6]}")
    header_struct = ELF_HEADER_STRUCTS[bits, byte_order]
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
    """Read an ELF file. Raise :class:`MalformedImage` only if its header is malformed."""
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
    """Return the interpreter's path, and why the kernel would refuse it."""
    segment = elf.find_segment(PT_INTERP)
    if segment is None or not segment.file_size:  # the segments of a debug symbols file are empty
        return "", ""
    if not 1 < segment.file_size <= _MAX_INTERPRETER_SIZE:
        return "", f"an interpreter path of {segment.file_size} bytes"
    raw = elf.read("the interpreter's path", segment.offset, segment.file_size)
    if len(raw) < segment.file_size:
        return "", ""  # which is recorded in problems or unread_parts
    if raw[-1] != 0:
        return "", "an interpreter path without a terminating NUL"
    path = raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return path, "" if path else "an empty interpreter path"


def _split_paths(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(":"))


def _read_dynamic_strings(elf: ElfFile) -> dict[int, list[str]] | None:
    """Return the strings of the dynamic section by tag, or None if there is no such section."""
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
        entries = []  # the string table's address is in the missing part, which is recorded
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
            elf.problems.append(
                f"a name in the dynamic section is not terminated within {max(max_size, 0)} bytes"
            )
    return strings
