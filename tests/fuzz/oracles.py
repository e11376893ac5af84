"""Differential oracles: the standard library, zlib and pyelftools read the same bytes."""

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

# Parts of the messages for JSON that only oci/strict_json.py rejects.
_STRICTER_JSON = (
    "is not an object", "appears twice", "is not a JSON number", "digits", "too large for a double",
    "levels deep", "not UTF-8",
)  # fmt: skip


def check_same_json(data: bytes, value: dict[str, Any]) -> None:
    """Compare a document with that of the standard library."""
    assert json.loads(data) == value


def check_json_error(data: bytes, error: MalformedImage) -> None:
    """Check that the standard library rejects the bytes too, or that only the strict reader has to."""
    try:
        json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return
    assert any(reason in error.message for reason in _STRICTER_JSON), error.message


def check_same_archive(data: bytes, entries: list[tuple[TarEntry, bytes]]) -> None:
    """Compare the members with those of ``tarfile``, except for documented differences."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = [(info, _read_content(archive, info)) for info in archive]
    except (tarfile.TarError, ValueError, OverflowError, UnicodeError):
        empty = not entries and not data.strip(b"\0")  # tarfile needs two zero blocks at least
        assert empty or explain_difference(data, entries), (
            f"tarfile cannot read it: {[entry for entry, _ in entries]}"
        )
        return
    actual = [_entry_row(entry, content) for entry, content in entries]
    expected = [_tarfile_row(info, content) for info, content in members]
    assert actual == expected or explain_difference(data, entries), f"{actual} != {expected}"


def _entry_row(entry: TarEntry, content: bytes) -> tuple[object, ...]:
    link = entry.linkname if entry.type in "12" else ""
    return (entry.name.rstrip("/"), entry.type, entry.size, link, content)


def _tarfile_row(info: tarfile.TarInfo, content: bytes) -> tuple[object, ...]:
    kind = info.type.decode("latin-1")
    # The size in the header of a link or directory has no meaning; tarfile returns it anyway.
    size = 0 if kind in "123456" else info.size
    link = info.linkname if kind in "12" else ""
    return (info.name.rstrip("/"), "0" if kind == "\0" else kind, size, link, content)


def _read_content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if not info.isreg():
        return b""
    stream = archive.extractfile(info)
    assert stream is not None
    content = stream.read()
    if len(content) != info.size:
        raise tarfile.ReadError("truncated")
    return content


NUMERIC_FIELDS = (
    (100, 108),
    (108, 116),
    (116, 124),
    (124, 136),
    (136, 148),
    (148, 156),
    (329, 337),
    (337, 345),
)
OCTAL = re.compile(rb"[0-7]*[ \0]*")
_EMPTY_VALUE = re.compile(rb"[0-9] (?:path|linkpath|size)=\n")
_EXTENDED = (b"x", b"L", b"K")

# Documented differences: our reader follows Go's archive/tar. A predicate takes a header, its content
# and the type flag of the previous header.
_DIFFERENCES: dict[str, Callable[[bytes, bytes, bytes], bool]] = {
    "tarfile applies global pax headers, engines do not": lambda header, _, __: header[156:157] == b"g",
    "tarfile reads members of unknown types as files, and supports types of Solaris and old GNU tar": (
        lambda header, _, __: header[156:157] not in b"\x000123456Lx7K"
    ),
    "of several extended headers tarfile uses the first, Go the last": (
        lambda header, _, previous: previous in _EXTENDED and header[156:157] in _EXTENDED
    ),
    "an empty GNU name (Go uses the name in the header), or one that is not terminated within its size": (
        lambda header, content, _: header[156:157] in b"LK" and (content[:1] in b"\0" or b"\0" not in content)
    ),
    "tarfile reads the prefix field of headers that are not POSIX headers": (
        lambda header, _, __: header[345] != 0 and header[257:265] != b"ustar\x0000"
    ),
    "a number that is not plain octal: tarfile parses it with Python's int(), Go does not": (
        lambda header, _, __: any(not OCTAL.fullmatch(header[a:b]) for a, b in NUMERIC_FIELDS)
    ),
    "bytes after the end of a name": (
        lambda header, _, __: b"\0" in header[:100].rstrip(b"\0") or b"\0" in header[157:257].rstrip(b"\0")
    ),
    "file or directory in the v7 format: tarfile decides by the truncated name, Go by the whole one": (
        lambda header, _, previous: previous in _EXTENDED and header[156:157] == b"\0"
    ),
    "an empty pax value: Go uses the value in the header": (
        lambda header, content, _: header[156:157] == b"x" and bool(_EMPTY_VALUE.search(content))
    ),
}


def explain_difference(data: bytes, entries: list[tuple[TarEntry, bytes]]) -> str:
    """Return why the two readers may differ for these bytes; an empty string if they may not."""
    previous = b""
    for header, content in iter_members(data):
        for reason, applies in _DIFFERENCES.items():
            if applies(header, content, previous):
                return reason
        previous = header[156:157]
    if _has_data_after_pax_records(data):
        return "tarfile reads pax records beyond their size, up to the end of the block"
    if len(data) % 512:
        return "tarfile needs the padding of the last file, which umoci omits"
    if previous in _EXTENDED:
        return "an extended header that is the last member"
    if any(entry.name.endswith("//") or not entry.name for entry, _ in entries):
        return "tarfile strips slashes at another point"
    return ""


def _has_data_after_pax_records(data: bytes) -> bool:
    """Return True if bytes follow the records of a pax header in their last block."""
    offset = 0
    for header, content in iter_members(data):
        end = offset + 512 + _padded_size(content)
        if header[156:157] == b"x" and data[offset + 512 + len(content) : end].strip(b"\0"):
            return True
        offset = end
    return False


def iter_members(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield header and content of each member, extended headers included."""
    offset = 0
    while offset + 512 <= len(data) and data[offset : offset + 512] != bytes(512):
        header = data[offset : offset + 512]
        size = 0 if header[156:157] in b"123456" else _parse_size(header)
        yield header, data[offset + 512 : offset + 512 + size]
        offset += 512 + -(-size // 512) * 512


def _parse_size(header: bytes) -> int:
    digits = re.match(rb" *([0-7]*)", header[124:136])
    return int(digits[1] or b"0", 8) if digits else 0


def _padded_size(content: bytes) -> int:
    return -(-len(content) // 512) * 512


def fix_checksums(data: bytes) -> bytes:
    """Return the archive with valid checksums, so that mutated headers are read."""
    fixed, offset = bytearray(data), 0
    for header, content in iter_members(data):
        fixed[offset + 148 : offset + 156] = checksum_field(header)
        offset += 512 + _padded_size(content)
    return bytes(fixed)


def checksum_field(header: bytes) -> bytes:
    """Return the checksum of a header: the sum of its bytes, with spaces in the field itself."""
    return b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 0x20)


def decompress_gzip(data: bytes) -> bytes:
    """Decompress with zlib; fail if it rejects data that our reader accepted."""
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AssertionError(f"zlib rejects accepted data: {error}") from error


_HEADER_FIELDS = {
    "e_type": "e_type", "e_machine": "e_machine", "e_flags": "e_flags", "entry_point": "e_entry",
    "phoff": "e_phoff",
    "phentsize": "e_phentsize", "phnum": "e_phnum", "shoff": "e_shoff", "shentsize": "e_shentsize",
    "shnum": "e_shnum", "shstrndx": "e_shstrndx",
}  # fmt: skip


def check_same_header(data: bytes, header: ElfHeader) -> None:
    """Compare an ELF header with that of pyelftools."""
    expected = _header_parser(header.bits, header.byte_order).parse(data)
    os_abi = expected["e_ident"]["EI_OSABI"]
    assert os_abi == header.os_abi or isinstance(os_abi, str)
    for attribute, field in _HEADER_FIELDS.items():
        value = expected[field]
        if isinstance(value, int):  # pyelftools returns names for known types and machines
            assert getattr(header, attribute) == value, field


@functools.cache
def _header_parser(bits: int, byte_order: str) -> Any:
    """Return the header structure of pyelftools; creating it takes longer than parsing a header."""
    structures = ELFStructs(little_endian=byte_order == "little", elfclass=bits)
    structures.create_basic_structs()
    return structures.Elf_Ehdr
