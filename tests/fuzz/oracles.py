"""Second opinions: the same bytes read by somebody else's code, or by ours in another way."""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from elftools.elf.structs import ELFStructs

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.tar import TarEntry
from buildkit_tasks.platforms.elf.model import ElfHeader

# Why our JSON reader refuses what the standard library takes (see oci/strict_json.py).
STRICTER_JSON = (
    "is not an object", "appears twice", "is not a JSON number", "digits", "too large for a double",
    "levels deep", "not UTF-8",
)  # fmt: skip


def same_json(data: bytes, value: dict[str, Any]) -> None:
    """The standard library reads the same document."""
    assert json.loads(data) == value


def refused_json(data: bytes, error: MalformedImage) -> None:
    """What is refused is no JSON for the standard library either, or one of the named exceptions."""
    try:
        json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return
    assert any(reason in error.message for reason in STRICTER_JSON), error.message


def same_archive(data: bytes, entries: list[tuple[TarEntry, bytes]]) -> None:
    """``tarfile`` finds the same members with the same data, unless a documented difference excuses it."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            oracle = [(info, _data(archive, info)) for info in archive]
    except (tarfile.TarError, ValueError, OverflowError, UnicodeError):
        empty = not entries and not data.strip(b"\0")  # tarfile wants two zero blocks at least
        assert empty or excuse(data, entries), f"tarfile cannot read it: {[entry for entry, _ in entries]}"
        return
    mine = [_comparable(entry, held) for entry, held in entries]
    theirs = [_theirs(info, held) for info, held in oracle]
    assert mine == theirs or excuse(data, entries), f"{mine} is not {theirs}"


def _comparable(entry: TarEntry, held: bytes) -> tuple[object, ...]:
    link = entry.linkname if entry.type in "12" else ""
    return (entry.name.rstrip("/"), entry.type, entry.size, link, held)


def _theirs(info: tarfile.TarInfo, held: bytes) -> tuple[object, ...]:
    kind = info.type.decode("latin-1")
    # A size in the header of a link or a folder means nothing, and tarfile shows it all the same.
    size = 0 if kind in "123456" else info.size
    link = info.linkname if kind in "12" else ""
    return (info.name.rstrip("/"), "0" if kind == "\0" else kind, size, link, held)


def _data(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if not info.isreg():
        return b""
    stream = archive.extractfile(info)
    assert stream is not None
    held = stream.read()
    if len(held) != info.size:
        raise tarfile.ReadError("cut off")
    return held


NUMBERS = ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (148, 156), (329, 337), (337, 345))
PLAIN = re.compile(rb"[0-7]*[ \0]*")
_EMPTY_VALUE = re.compile(rb"[0-9] (?:path|linkpath|size)=\n")
_EXTENDED = (b"x", b"L", b"K")

# Why the two may read the same member differently: our reader follows Go's archive/tar. A predicate
# takes a header, its data and the type flag of the header before.
_EXCUSES: dict[str, Callable[[bytes, bytes, bytes], bool]] = {
    "tarfile applies global pax headers, engines do not": lambda header, _, __: header[156:157] == b"g",
    "tarfile takes members of unknown types for files, and knows Solaris' and old GNU's": (
        lambda header, _, __: header[156:157] not in b"\x000123456Lx7K"
    ),
    "of several extended headers the first counts in tarfile, the last in Go": (
        lambda header, _, before: before in _EXTENDED and header[156:157] in _EXTENDED
    ),
    "a GNU name that is empty (Go: the header's own one holds) or has no end within its size": (
        lambda header, held, _: header[156:157] in b"LK" and (held[:1] in b"\0" or b"\0" not in held)
    ),
    "tarfile reads a prefix in headers that are not POSIX's": (
        lambda header, _, __: header[345] != 0 and header[257:265] != b"ustar\x0000"
    ),
    "a number that is no plain octal one: tarfile asks Python's int, Go does not": (
        lambda header, _, __: any(not PLAIN.fullmatch(header[a:b]) for a, b in NUMBERS)
    ),
    "bytes behind the end of a name": (
        lambda header, _, __: b"\0" in header[:100].rstrip(b"\0") or b"\0" in header[157:257].rstrip(b"\0")
    ),
    "an old file or folder: tarfile asks the cut name which it is, Go the whole one": (
        lambda header, _, before: before in _EXTENDED and header[156:157] == b"\0"
    ),
    "an empty pax value: in Go the header's own one holds then": (
        lambda header, held, _: header[156:157] == b"x" and bool(_EMPTY_VALUE.search(held))
    ),
}


def excuse(data: bytes, entries: list[tuple[TarEntry, bytes]]) -> str:
    """The reason for which the two may differ about these bytes, if there is one."""
    before = b""
    for header, held in members(data):
        for reason, holds in _EXCUSES.items():
            if holds(header, held, before):
                return reason
        before = header[156:157]
    if _rubbish(data):
        return "tarfile reads pax records beyond their size, up to the block's end"
    if len(data) % 512:
        return "tarfile wants the padding of the last file, which umoci leaves out"
    if before in _EXTENDED:
        return "an extended header with nothing behind it"
    if any(entry.name.endswith("//") or not entry.name for entry, _ in entries):
        return "tarfile strips slashes at other moments"
    return ""


def _rubbish(data: bytes) -> bool:
    """Whether something follows the records of a pax header in its last block."""
    at = 0
    for header, held in members(data):
        end = at + 512 + -(-len(held) // 512) * 512
        if header[156:157] == b"x" and data[at + 512 + len(held) : end].strip(b"\0"):
            return True
        at = end
    return False


def members(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Header and data of every member, extended headers too, as a plain reader parts them."""
    at = 0
    while at + 512 <= len(data) and data[at : at + 512] != bytes(512):
        header = data[at : at + 512]
        size = 0 if header[156:157] in b"123456" else _size(header)
        yield header, data[at + 512 : at + 512 + size]
        at += 512 + -(-size // 512) * 512


def _size(header: bytes) -> int:
    digits = re.match(rb" *([0-7]*)", header[124:136])
    return int(digits[1] or b"0", 8) if digits else 0


def repaired(data: bytes) -> bytes:
    """The archive with the checksum of every header made right: a mutation then reaches what it says."""
    out, at = bytearray(data), 0
    for header, held in members(data):
        out[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
        at += 512 + -(-len(held) // 512) * 512
    return bytes(out)


def gunzip(data: bytes) -> bytes:
    """What zlib makes of it; that it refuses what was read is a finding."""
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AssertionError(f"zlib refuses what was read: {error}") from error


_EHDR = {
    "e_type": "e_type", "e_machine": "e_machine", "e_flags": "e_flags", "entry_point": "e_entry",
    "phoff": "e_phoff",
    "phentsize": "e_phentsize", "phnum": "e_phnum", "shoff": "e_shoff", "shentsize": "e_shentsize",
    "shnum": "e_shnum", "shstrndx": "e_shstrndx",
}  # fmt: skip


def same_header(data: bytes, header: ElfHeader) -> None:
    """pyelftools reads the same header."""
    oracle = _structure(header.bits, header.byte_order).parse(data)
    assert oracle["e_ident"]["EI_OSABI"] == header.os_abi or isinstance(oracle["e_ident"]["EI_OSABI"], str)
    for mine, theirs in _EHDR.items():
        value = oracle[theirs]
        if isinstance(value, int):  # known types and machines are names there
            assert getattr(header, mine) == value, theirs


@functools.cache
def _structure(bits: int, order: str) -> Any:
    """What pyelftools calls an ELF header; making it costs more than reading one."""
    structures = ELFStructs(little_endian=order == "little", elfclass=bits)
    structures.create_basic_structs()
    return structures.Elf_Ehdr
