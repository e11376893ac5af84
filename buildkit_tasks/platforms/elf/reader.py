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
from buildkit_tasks.platforms.elf.segments import FORMS, PT_DYNAMIC, PT_INTERP, Layout, forms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.platforms.elf.view import Order, View

__all__ = [
    "ELF_MAGIC",
    "EXECUTABLE_TYPES",
    "inspect",
    "interpreter",
    "read_elf",
]

ELF_MAGIC = b"\x7fELF"
EXECUTABLE_TYPES = frozenset({2, 3})  # ET_EXEC, ET_DYN: what a kernel starts
_BITS = {1: 32, 2: 64}
_ORDER: dict[int, Order] = {1: "little", 2: "big"}
_IDENT = 16
_PT_INTERP = 3
_MAX_INTERPRETER = 4096  # PATH_MAX, which the kernel allows at most

# e_type to e_shstrndx.
_HEADER_FORMS = forms("HHIIIIIHHHHHH", "HHIQQQIHHHHHH")
_DYNAMIC_FORMS = forms("II", "QQ")
_OFFSET, _FILE_SIZE = {32: 1, 64: 2}, {32: 4, 64: 5}

_NULL, _NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _RUNPATH = 0, 1, 5, 10, 14, 15, 29
_WANTED = frozenset({_NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _RUNPATH})
_MAX_DYNAMIC = 1 << 18  # bytes; the longest sections have some hundred entries
_MAX_STRINGS = 2048  # libraries and paths that one file may name
_MAX_STRING = 4096


def read_elf(data: bytes) -> ElfHeader:
    """Read the header from a file's first bytes; 64 are always enough."""
    if data[:4] != ELF_MAGIC:
        raise MalformedImage("no ELF file: it does not start with 7f 45 4c 46")
    if len(data) < _IDENT:
        raise MalformedImage("a truncated ELF header")
    bits, order = _BITS.get(data[4]), _ORDER.get(data[5])
    if bits is None or order is None or data[6] != 1:
        raise MalformedImage(f"an ELF header of class {data[4]}, byte order {data[5]}, version {data[6]}")
    form = _HEADER_FORMS[bits, order]
    if len(data) < _IDENT + form.size:
        raise MalformedImage("a truncated ELF header")
    (
        kind, machine, _, entry, phoff, shoff, flags, _, phentsize, phnum, shentsize, shnum, shstrndx,
    ) = form.unpack_from(data, _IDENT)  # fmt: skip
    return ElfHeader(
        bits=bits, order=order, abi=data[7], type=kind, machine=machine, flags=flags,
        entry=entry, phoff=phoff, phentsize=phentsize, phnum=phnum,
        shoff=shoff, shentsize=shentsize, shnum=shnum, shstrndx=shstrndx,
    )  # fmt: skip


def inspect(view: View) -> Binary:
    """Read a whole ELF file. Raises :class:`MalformedImage` only if its header is malformed."""
    from buildkit_tasks.platforms.elf.isa_evidence import gather

    header = read_elf(view.at(0, 64))
    layout = Layout(view, header)
    names = _dynamic(layout)
    loader, refused = _loader(layout)
    return Binary(
        header=header,
        interpreter=loader,
        refused=refused,
        dynamic=names is not None,
        needed=tuple(names[_NEEDED]) if names else (),
        soname=next(iter(names[_SONAME]), "") if names else "",
        rpath=_paths(names[_RPATH]) if names else (),
        runpath=_paths(names[_RUNPATH]) if names else (),
        evidence=tuple(gather(layout)),
        problems=tuple(layout.problems),
        unread=tuple(layout.unread),
    )


def _loader(layout: Layout) -> tuple[str, str]:
    """The loader's path, and what is wrong with it."""
    segment = layout.of_kind(PT_INTERP)
    if segment is None or not segment.size:  # a file of debugging symbols has emptied segments
        return "", ""
    if not 1 < segment.size <= _MAX_INTERPRETER:
        return "", f"an interpreter path of {segment.size} bytes"
    raw = layout.read("the interpreter's path", segment.offset, segment.size)
    if len(raw) < segment.size:
        return "", ""  # which the layout has noted
    if raw[-1] != 0:
        return "", "an interpreter path without its end"
    return _text(raw), "" if raw[0] else "an empty interpreter path"


def _paths(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(":"))


def _dynamic(layout: Layout) -> dict[int, list[str]] | None:
    """The strings of the dynamic section by their tags, or None where there is no such section."""
    segment = layout.of_kind(PT_DYNAMIC)
    if segment is None:
        return None
    form = _DYNAMIC_FORMS[layout.header.bits, layout.header.order]
    wanted = min(segment.size, _MAX_DYNAMIC)
    data = layout.read("the dynamic section", segment.offset, wanted)
    tags, table, size = [], 0, 0
    for tag, value in form.iter_unpack(data[: len(data) // form.size * form.size]):
        if tag == _NULL:
            break
        if tag == _STRTAB:
            table = value
        elif tag == _STRSZ:
            size = value
        elif tag in _WANTED:
            tags.append((tag, value))
    if len(data) < wanted and not (table and size):
        tags = []  # where the names are is in the part that is missing, and that was said
    return _strings(layout, tags, table, size)


def _strings(layout: Layout, tags: list[tuple[int, int]], table: int, size: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {_NEEDED: [], _SONAME: [], _RPATH: [], _RUNPATH: []}
    if not tags:
        return found
    if len(tags) > _MAX_STRINGS:
        layout.problems.append(f"{len(tags)} names in the dynamic section: only {_MAX_STRINGS} were read")
    place = layout.where(table)
    if place is None:
        layout.problems.append(f"the dynamic section's strings are at {table:#x}, which is not loaded")
        return found
    for tag, offset in tags[:_MAX_STRINGS]:
        room = min(size - offset, place[1] - offset, _MAX_STRING)
        raw = layout.view.at(place[0] + offset, room) if room > 0 else b""
        text, end, _ = raw.partition(b"\0")
        if end:
            found[tag].append(text.decode("utf-8", "surrogateescape"))
        elif room > 0 and len(raw) < room:
            layout.missing("strings of the dynamic section", place[0] + offset, room)
        else:
            layout.problems.append(f"a name in the dynamic section has no end within {max(room, 0)} bytes")
    return found


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def interpreter(program: bytes | BinaryIO) -> str | None:
    """The program's loader (PT_INTERP), or None for one that needs none: a static program."""
    stream = io.BytesIO(program) if isinstance(program, bytes) else program
    stream.seek(0)
    header = read_elf(stream.read(64))
    form = FORMS[header.bits, header.order]
    if header.phnum and header.phentsize != form.size:
        raise MalformedImage(f"ELF program headers of {header.phentsize} bytes each")
    for number in range(header.phnum):
        segment = _at(stream, header.phoff + number * header.phentsize, form.size)
        if len(segment) < form.size:
            raise MalformedImage("a truncated ELF header")
        fields = form.unpack(segment)
        if fields[0] == _PT_INTERP:
            return _path(stream, fields[_OFFSET[header.bits]], fields[_FILE_SIZE[header.bits]])
    return None


def _path(stream: BinaryIO, offset: int, size: int) -> str:
    if not 1 < size <= _MAX_INTERPRETER:
        raise MalformedImage(f"an ELF interpreter path of {size} bytes")
    raw = _at(stream, offset, size)
    if len(raw) != size or raw[-1] != 0:
        raise MalformedImage("an ELF interpreter path without its end")
    return _text(raw)


def _at(stream: BinaryIO, offset: int, size: int) -> bytes:
    if offset >= 1 << 63:
        raise MalformedImage(f"an ELF file offset of {offset}")
    stream.seek(offset)
    return stream.read(size)
