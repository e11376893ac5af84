"""A forward-only reader of tar streams that nobody can make slow, large or wrong.

POSIX.1-1988 ustar, POSIX.1-2001 pax extended headers, GNU long names and base-256 numbers, with
the meaning that Go's archive/tar gives them, since engines read layers with that: global pax
headers change nothing, links and folders have no data, one zero block alone is no end. Sparse
files are refused. Memory is constant: one header and one metadata record at a time.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from isal.isal_zlib import adler32 as _adler32

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "BLOCK_SIZE",
    "DIRECTORY",
    "HARD_LINK",
    "REGULAR",
    "SYMLINK",
    "EntryOwner",
    "OwnerTarReader",
    "TarEntry",
    "TarReader",
    "truncated_error",
]

BLOCK_SIZE = 512
REGULAR, HARD_LINK, SYMLINK, DIRECTORY = "0", "1", "2", "5"

_ZERO_BLOCK = bytes(BLOCK_SIZE)
_HEADER = struct.Struct("100s8s16x12s12x8sc100s8s80x155s12x")
_SIGNED_BYTES = struct.Struct("148b8x356b")
_BASE_256_FLAG = 0x80  # GNU: the top bit says that the number is binary
_OCTAL_NUMBER = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_MAX_SIZE = 1 << 50  # a pebibyte: past it the number is an attack on whoever adds to it
_MAX_PAX_SIZE = 1 << 20
_MAX_PATH_LENGTH = 4096
_MAX_PAX_RECORDS = 1024
_CHUNK_SIZE = 1 << 20
_MAX_CACHED_FIELDS = 4096
_new_tuple = tuple.__new__
# Links, devices, folders, FIFOs: their size field means nothing.
_TYPES_WITHOUT_DATA = frozenset([b"1", b"2", b"3", b"4", b"5", b"6"])
_METADATA_TYPES = frozenset("xgLK")
_OWNER_KEYS = frozenset(["uid", "gid", "mtime"])  # what pax headers say besides names and sizes
_V7_REGULAR = "\0"  # before POSIX: a file, or a folder if its name, whole, ends in a slash
_PAX_RECORD_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_INTEGER = re.compile("[+-]?[0-9]+", re.ASCII)
_PAX_TIME = re.compile(r"([+-]?[0-9]+)(?:\.([0-9]*))?", re.ASCII)
_INT64_LIMIT = 1 << 63
_NS_PER_SECOND = 1_000_000_000  # nanoseconds
_MAX_TIME_NS = _INT64_LIMIT * _NS_PER_SECOND
# Type flags as they come and as text, for the kinds that most entries have.
_COMMON_TYPES = {b"0": REGULAR, b"1": HARD_LINK, b"2": SYMLINK, b"5": DIRECTORY}


class ByteStream(Protocol):
    """What is read from: a file, or a layer that is unpacked on the way."""

    def read(self, size: int, /) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""

    def seekable(self) -> bool:
        """Whether it has a ``seek``, by which data can be gone past without reading them."""


class TarEntry(NamedTuple):
    """One member: ``type`` is the header's type flag, ``offset`` where its data begin."""

    name: str
    type: str
    size: int
    linkname: str
    mode: int
    offset: int


class EntryOwner(NamedTuple):
    """Whose an entry is, by number, and when it was changed: nanoseconds since 1970."""

    uid: int
    gid: int
    mtime: int


class TarReader:
    """Iterates over the entries of a stream; :meth:`read` gives the data of the current one.

    Raises :class:`MalformedImage` with the offset for anything that is not a well-formed archive
    and :class:`LimitExceeded` past the cap on entries.
    """

    def __init__(self, stream: ByteStream, *, max_entries: int = LIMITS.entries) -> None:
        self._stream = stream
        self._seek: Callable[[int, int], int] | None = getattr(stream, "seek") if stream.seekable() else None  # noqa: B009
        self._remaining_entries = max_entries
        self._position = 0  # where the stream is
        self._next_header_offset = 0  # where the next header is
        self._data_end_offset = 0  # where the current member's data end
        self._iterator = self._iter_entries()

    def __iter__(self) -> Iterator[TarEntry]:
        return self._iterator

    def __next__(self) -> TarEntry:
        return next(self._iterator)

    @property
    def remaining(self) -> int:
        """How many bytes of the current entry's data were not read."""
        return self._data_end_offset - self._position

    def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes of the current entry's data, from where the last call ended."""
        count = min(limit, self._data_end_offset - self._position)
        data = self._stream.read(count)
        self._position += len(data)
        if len(data) != count:
            raise truncated_error(self._position)
        return data

    def _iter_entries(self) -> Iterator[TarEntry]:
        overrides: dict[str, str] = {}
        read = self._stream.read
        while True:
            if self._position != self._next_header_offset:
                self._skip_to_header()
            header = read(BLOCK_SIZE)
            self._position += len(header)
            if len(header) != BLOCK_SIZE or header == _ZERO_BLOCK:
                self._check_end(header)
                break
            entry = self._parse_header(header)
            if entry.type in _METADATA_TYPES:
                overrides = self._read_metadata(entry, overrides)
            elif overrides or entry.type == _V7_REGULAR:
                yield self._apply_overrides(entry, overrides)
                overrides = {}
            else:
                yield entry
        if not overrides.keys() <= _OWNER_KEYS:
            raise self._malformed_error("the archive ends after a name, before its entry")

    def _check_end(self, block: bytes) -> None:
        """An archive ends with two zero blocks, or with nothing more."""
        if len(block) == BLOCK_SIZE:
            block = self._stream.read(BLOCK_SIZE)
            self._position += len(block)
            if block not in (_ZERO_BLOCK, b""):
                raise self._malformed_error("one zero block and then more")
        elif block:
            raise self._malformed_error("the archive ends in the middle of a header")
        self._next_header_offset = self._position

    def _parse_header(self, header: bytes) -> TarEntry:
        name, mode_field, size_field, checksum, type_flag, link_field, magic, prefix = _HEADER.unpack(header)
        self._remaining_entries -= 1
        if self._remaining_entries < 0:
            raise LimitExceeded("the archive has too many entries")
        try:
            if (_adler32(header) - _ADLER32_CACHE[checksum]) & 0xFFFF:
                _verify_checksum(header, checksum)
            size, permissions = (
                0 if type_flag in _TYPES_WITHOUT_DATA else _NUMBER_CACHE[size_field],
                _NUMBER_CACHE[mode_field],
            )
        except ValueError as error:
            raise self._malformed_error(str(error)) from None
        name = name.partition(b"\0")[0]
        if prefix[0] and magic.startswith(b"ustar"):
            name = self._read_prefix(header, prefix, magic) + name
        entry_type = _COMMON_TYPES.get(type_flag) or self._entry_type(type_flag)
        self._data_end_offset = self._next_header_offset = data_offset = self._position
        if size:
            self._set_data_size(size)
        linkname = _decode_text(link_field.partition(b"\0")[0]) if link_field[0] else ""
        # What NamedTuple's own constructor does, at half its price: there may be millions.
        return _new_tuple(
            TarEntry, (_decode_text(name), entry_type, size, linkname, permissions, data_offset)
        )

    def _read_prefix(self, header: bytes, prefix: bytes, magic: bytes) -> bytes:
        """What stands before the name, with its slash. GNU's headers have times there instead."""
        if magic[:6] == b"ustar\0":  # the version does not count
            prefix_field = prefix[:131] if header[508:] == b"tar\0" else prefix  # star has times behind it
            return prefix_field.partition(b"\0")[0] + b"/"
        if magic == b"ustar  \0" and any(map(_is_invalid_number, (prefix[:12], prefix[12:24]))):
            raise self._malformed_error(
                "a GNU header with damaged times, which Go takes for a part of the name"
            )
        return b""

    def _entry_type(self, type_flag: bytes) -> str:
        if type_flag == b"S":
            raise self._malformed_error("sparse files are not supported")
        return type_flag.decode("latin-1")

    def _set_data_size(self, size: int) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise self._malformed_error(f"a size of {size} bytes")
        self._data_end_offset = self._position + size
        self._next_header_offset = self._data_end_offset + -size % BLOCK_SIZE

    def _read_metadata(self, entry: TarEntry, overrides: dict[str, str]) -> dict[str, str]:
        """What is said about the entry that follows: pax headers by their keys, GNU's by their types.

        As in Go, of several pax headers the last counts alone; a global one drops what was said.
        """
        limit = _MAX_PAX_SIZE if entry.type in "xg" else _MAX_PATH_LENGTH + 1
        if entry.size > limit:
            raise self._malformed_error(f"a metadata record of {entry.size} bytes; {limit} are allowed")
        data = self.read(entry.size)
        if entry.type == "g":
            return {}
        if entry.type == "x":
            return {
                record_type: text for record_type, text in overrides.items() if record_type in "LK"
            } | self._parse_pax(data)
        return overrides | {entry.type: _decode_text(data.partition(b"\0")[0])}

    def _parse_pax(self, data: bytes) -> dict[str, str]:
        """The path, linkpath, size and owner of records ``LENGTH KEY=VALUE`` with a newline at their end."""
        overrides: dict[str, str] = {}
        offset = record_count = 0
        while offset < len(data):
            match, record_count = _PAX_RECORD_LENGTH.match(data, offset), record_count + 1
            end = offset + int(match[1]) if match else 0
            record = data[match.end() : end] if match else b""
            key, separator, value = record[:-1].partition(b"=")
            if not separator or record[-1:] != b"\n" or end > len(data) or record_count > _MAX_PAX_RECORDS:
                raise self._malformed_error("a malformed pax record")
            if key in (b"path", b"linkpath", b"size"):
                overrides[key.decode()] = self._decode_pax_value(value)
            elif key in (b"mtime", b"uid", b"gid"):
                overrides[key.decode()] = _decode_text(value)
            elif key.startswith(b"GNU.sparse."):
                raise self._malformed_error("sparse files are not supported")
            offset = end
        return overrides

    def _decode_pax_value(self, value: bytes) -> str:
        if len(value) > _MAX_PATH_LENGTH or b"\0" in value:
            raise self._malformed_error("a pax path that is too long or holds a NUL")
        return _decode_text(value)

    def _apply_overrides(self, entry: TarEntry, overrides: dict[str, str]) -> TarEntry:
        """The entry with its metadata; an empty value takes none of them back."""
        name = overrides.get("L") or overrides.get("path") or entry.name
        entry_type = entry.type
        if entry_type == _V7_REGULAR:
            entry_type = DIRECTORY if name.endswith("/") else REGULAR
        size, digits = entry.size, overrides.get("size", "")
        if entry_type == DIRECTORY and size:  # an old one: a folder has no data
            size, self._data_end_offset, self._next_header_offset = 0, self._position, self._position
        if digits and entry_type.encode("latin-1") not in _TYPES_WITHOUT_DATA:
            if not re.fullmatch("[0-9]{1,18}", digits):
                raise self._malformed_error(f"a size of {digits[:40]!r} bytes")
            size = int(digits)
            self._set_data_size(size)
        linkname = overrides.get("K") or overrides.get("linkpath") or entry.linkname
        return entry._replace(name=name, type=entry_type, size=size, linkname=linkname)

    def _skip_to_header(self) -> None:
        """Go to the next header, by seeking where the stream can.

        Seeking stops one byte before it: reading that byte proves that the data were there.
        """
        if self._seek is not None and self._data_end_offset > self._position + 1:
            self._seek(self._data_end_offset - 1 - self._position, 1)
            self._position = self._data_end_offset - 1
        while self._position < self._next_header_offset:
            data = self._stream.read(min(self._next_header_offset - self._position, _CHUNK_SIZE))
            self._position += len(data)
            if not data and self._position < self._data_end_offset:
                raise self._malformed_error("the archive ends in the middle of a file")
            if not data:
                self._next_header_offset = (
                    self._position
                )  # the last file's padding may be missing: umoci writes none

    def _malformed_error(self, reason: str) -> MalformedImage:
        return MalformedImage(f"tar archive, before byte {self._position}: {reason}")


class OwnerTarReader(TarReader):
    """The same reader, which can tell whose the current entry is: who does not ask does not pay."""

    _current_header = _ZERO_BLOCK
    _overrides: Mapping[str, str] | None = None

    def read_owner(self) -> EntryOwner:
        """Owner and time of the current entry, of its pax header where that has them.

        Raises :class:`MalformedImage` for what Go's reader refuses: no number, or one past 64 bits.
        """
        header = self._current_header
        try:
            owner = EntryOwner(
                _NUMBER_CACHE[header[108:116]],
                _NUMBER_CACHE[header[116:124]],
                _NUMBER_CACHE[header[136:148]] * _NS_PER_SECOND,
            )
            if self._overrides:
                owner = _override_owner(owner, self._overrides)
        except ValueError as error:
            raise self._malformed_error(str(error)) from None
        if not -_MAX_TIME_NS <= owner.mtime < _MAX_TIME_NS:
            raise self._malformed_error(f"a time of {owner.mtime // _NS_PER_SECOND} seconds")
        return owner

    def _parse_header(self, header: bytes) -> TarEntry:
        self._current_header, self._overrides = header, None
        return super()._parse_header(header)

    def _apply_overrides(self, entry: TarEntry, overrides: dict[str, str]) -> TarEntry:
        self._overrides = overrides
        return super()._apply_overrides(entry, overrides)


def _override_owner(owner: EntryOwner, overrides: Mapping[str, str]) -> EntryOwner:
    """What a pax header says instead; as in Go, an empty value says nothing.

    Raises :class:`ValueError`.
    """
    uid, gid, mtime = owner
    if overrides.get("uid"):
        uid = _parse_int64(overrides["uid"])
    if overrides.get("gid"):
        gid = _parse_int64(overrides["gid"])
    if overrides.get("mtime"):
        mtime = _parse_pax_time(overrides["mtime"])
    return EntryOwner(uid, gid, mtime)


def _parse_int64(text: str) -> int:
    """A decimal number of 64 bits: Go's ``strconv.ParseInt``."""
    if not _INTEGER.fullmatch(text) or not -_INT64_LIMIT <= int(text) < _INT64_LIMIT:
        raise ValueError(f"{text[:40]!r} is no number of 64 bits")
    return int(text)


def _parse_pax_time(text: str) -> int:
    """Seconds with a fraction as nanoseconds, finer ones dropped: Go's ``parsePAXTime``."""
    match = _PAX_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no time")
    fraction = int((match[2] or "")[:9].ljust(9, "0"))
    return _parse_int64(match[1]) * _NS_PER_SECOND + (-fraction if text[0] == "-" else fraction)


def _verify_checksum(header: bytes, checksum_field: bytes) -> None:
    """Compare the header's sum of bytes, counted with its checksum field as blanks.

    Some writers summed signed bytes.
    """
    valid_sums = (sum(header) - sum(checksum_field) + 256, sum(_SIGNED_BYTES.unpack(header)) + 256)
    if _parse_number(checksum_field) not in valid_sums:
        raise ValueError("the header's checksum does not hold")


def _expected_adler32(checksum_field: bytes) -> int:
    """The low half of the Adler-32 of a header with this checksum, if the checksum holds.

    That half is one more than the sum of the bytes, modulo 65521, at C speed. A header for which it
    is not this is added up byte by byte.
    """
    return 1 + _parse_number(checksum_field) - 256 + sum(checksum_field)


def truncated_error(position: int) -> MalformedImage:
    """What is wrong with an archive that ends where data should be."""
    return MalformedImage(f"the archive ends in the middle of a file, at byte {position}")


def _is_invalid_number(field: bytes) -> bool:
    if not field[0]:
        return False
    try:
        _parse_number(field)
    except ValueError:
        return True
    return False


def _parse_number(field: bytes) -> int:
    """A number of a header. Raises :class:`ValueError`."""
    digits = field.rstrip(b"\0 ")
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)
    if field[0] & _BASE_256_FLAG:
        value = int.from_bytes(field, "big", signed=True)
        return value + (1 << (len(field) * 8 - 1)) if value < 0 and field[0] == _BASE_256_FLAG else value
    match = _OCTAL_NUMBER.fullmatch(field)
    if match is None:
        raise ValueError(f"{field!r} is no octal number")
    return int(match[1] or b"0", 8)


def _decode_text(data: bytes) -> str:
    return data.decode() if data.isascii() else data.decode("utf-8", "surrogateescape")  # twice as fast


class _FieldCache(dict[bytes, int]):
    """What fields mean, of which most are the same few: a look-up costs a quarter of ``lru_cache``'s."""

    def __init__(self, parse: Callable[[bytes], int]) -> None:
        self._parse = parse

    def __missing__(self, field: bytes) -> int:
        if len(self) >= _MAX_CACHED_FIELDS:
            self.clear()
        value = self[field] = self._parse(field)
        return value


_NUMBER_CACHE = _FieldCache(_parse_number)
_ADLER32_CACHE = _FieldCache(_expected_adler32)
