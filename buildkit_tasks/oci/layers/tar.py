"""Read tar streams of untrusted archives, forward only, in constant memory.

POSIX.1-1988 ustar, POSIX.1-2001 pax extended headers, GNU long names and base-256 numbers, interpreted
as by Go's archive/tar, with which engines read layers: global pax headers have no effect, links and
directories have no data, a single zero block is not an end. Sparse files are rejected. One header and
one metadata record are held at a time.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from isal.isal_zlib import adler32 as _adler32

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar_fields import (
    EXPECTED_ADLER32,
    MAX_PATH_LENGTH,
    NS_PER_SECOND,
    NUMBERS,
    decode_text,
    has_invalid_times,
    parse_int64,
    parse_pax_records,
    parse_pax_time,
    verify_checksum,
)
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
    "is_tar_header",
    "truncated_error",
]

BLOCK_SIZE = 512
REGULAR, HARD_LINK, SYMLINK, DIRECTORY = "0", "1", "2", "5"

_MAGIC = slice(257, 262)
_ZERO_BLOCK = bytes(BLOCK_SIZE)
_HEADER = struct.Struct("100s8s16x12s12x8sc100s8s80x155s12x")
_MAX_SIZE = 1 << 50  # 1 PiB: sums of sizes stay in 64 bits
_MAX_PAX_SIZE = 1 << 20
_CHUNK_SIZE = 1 << 20
_new_tuple = tuple.__new__
# Links, devices, directories and FIFOs: their size field has no meaning.
_TYPES_WITHOUT_DATA = frozenset([b"1", b"2", b"3", b"4", b"5", b"6"])
_METADATA_TYPES = frozenset("xgLK")
_OWNER_KEYS = frozenset(["uid", "gid", "mtime"])  # the pax keys that override neither name nor size
_V7_REGULAR = "\0"  # before POSIX: a file, or a directory if its full name ends in a slash
_MAX_TIME_NS = (1 << 63) * NS_PER_SECOND
_COMMON_TYPES = {b"0": REGULAR, b"1": HARD_LINK, b"2": SYMLINK, b"5": DIRECTORY}


class ByteStream(Protocol):
    """A stream to read an archive from: a file, or a layer that is decompressed as it is read."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes; fewer only at the end."""

    def seekable(self) -> bool:
        """Return True if there is a ``seek`` method, to skip data without reading it."""


class TarEntry(NamedTuple):
    """One entry: ``type`` is the header's type flag, ``offset`` the position of its data in the archive."""

    name: str
    type: str
    size: int
    linkname: str
    mode: int
    offset: int


class EntryOwner(NamedTuple):
    """An entry's numeric owner, and its modification time in nanoseconds since 1970."""

    uid: int
    gid: int
    mtime: int


class TarReader:
    """Iterate over the entries of a stream; :meth:`read` returns the data of the current one.

    Raises :class:`MalformedImage`, with the offset, for a malformed archive and :class:`LimitExceeded`
    for more than ``max_entries`` headers.
    """

    def __init__(self, stream: ByteStream, *, max_entries: int = LIMITS.entries) -> None:
        self._stream = stream
        self._seek: Callable[[int, int], int] | None = getattr(stream, "seek") if stream.seekable() else None  # noqa: B009
        self._remaining_entries = max_entries
        self._position = 0  # of the stream
        self._next_header_offset = 0
        self._data_end_offset = 0  # of the current entry
        self._iterator = self._iter_entries()

    def __iter__(self) -> Iterator[TarEntry]:
        return self._iterator

    def __next__(self) -> TarEntry:
        return next(self._iterator)

    @property
    def remaining(self) -> int:
        """The number of bytes of the current entry's data that are not read yet."""
        return self._data_end_offset - self._position

    def read(self, limit: int) -> bytes:
        """Return the next bytes of the current entry's data, at most ``limit``."""
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
            raise self._malformed_error("the archive ends after a metadata record, before its entry")

    def _check_end(self, block: bytes) -> None:
        """Check the end of the archive: two zero blocks, one as the last block, or none."""
        if len(block) == BLOCK_SIZE:
            block = self._stream.read(BLOCK_SIZE)
            self._position += len(block)
            if block not in (_ZERO_BLOCK, b""):
                raise self._malformed_error("a single zero block, followed by more data")
        elif block:
            raise self._malformed_error("the archive ends in the middle of a header")
        self._next_header_offset = self._position

    def _parse_header(self, header: bytes) -> TarEntry:
        name, mode_field, size_field, checksum, type_flag, link_field, magic, prefix = _HEADER.unpack(header)
        self._remaining_entries -= 1
        if self._remaining_entries < 0:
            raise LimitExceeded("the archive has too many entries")
        try:
            # Only of ASCII is the sum surely below the modulus of Adler-32.
            if _adler32(header) & 0xFFFF != EXPECTED_ADLER32[checksum] or not header.isascii():
                verify_checksum(header, checksum)
            size = 0 if type_flag in _TYPES_WITHOUT_DATA else NUMBERS[size_field]
            mode = NUMBERS[mode_field]
        except ValueError as error:
            raise self._malformed_error(str(error)) from None
        name = name.partition(b"\0")[0]
        if prefix[0] and magic.startswith(b"ustar"):
            name = self._read_prefix(header, prefix, magic) + name
        entry_type = _COMMON_TYPES.get(type_flag) or self._entry_type(type_flag)
        self._data_end_offset = self._next_header_offset = data_offset = self._position
        if size:
            self._set_data_size(size)
        linkname = decode_text(link_field.partition(b"\0")[0]) if link_field[0] else ""
        # Half the time of NamedTuple's own constructor: an archive may have millions of entries.
        return _new_tuple(TarEntry, (decode_text(name), entry_type, size, linkname, mode, data_offset))

    def _read_prefix(self, header: bytes, prefix: bytes, magic: bytes) -> bytes:
        """Return the directory that the name is relative to, with a slash; GNU headers have times there."""
        if magic[:6] == b"ustar\0":  # in any version
            prefix_field = prefix[:131] if header[508:] == b"tar\0" else prefix  # star: times follow it
            return prefix_field.partition(b"\0")[0] + b"/"
        if magic == b"ustar  \0" and has_invalid_times(prefix):
            raise self._malformed_error("a GNU header with invalid times, which Go reads as part of the name")
        return b""

    def _entry_type(self, type_flag: bytes) -> str:
        if type_flag == b"S":
            raise self._malformed_error("sparse files are not supported")
        return type_flag.decode("latin-1")

    def _set_data_size(self, size: int) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise self._malformed_error(f"an invalid size of {size} bytes")
        self._data_end_offset = self._position + size
        self._next_header_offset = self._data_end_offset + -size % BLOCK_SIZE

    def _read_metadata(self, entry: TarEntry, overrides: dict[str, str]) -> dict[str, str]:
        """Return the metadata of the following entry: pax values by key, GNU long names by type (L, K).

        ====== ======================================================= ==========================
        type   record                                                  effect on ``overrides``
        ====== ======================================================= ==========================
        ``x``  pax header                                              replaces earlier pax values
        ``g``  global pax header                                       drops all, as Go does
        ``L``  GNU long name                                           is added
        ``K``  GNU long link name                                      is added
        ====== ======================================================= ==========================
        """
        limit = _MAX_PAX_SIZE if entry.type in "xg" else MAX_PATH_LENGTH + 1
        if entry.size > limit:
            raise self._malformed_error(
                f"a metadata record of {entry.size} bytes; at most {limit} are allowed"
            )
        data = self.read(entry.size)
        if entry.type == "g":
            return {}
        if entry.type != "x":
            return overrides | {entry.type: decode_text(data.partition(b"\0")[0])}
        gnu_names = {key: value for key, value in overrides.items() if key in "LK"}
        try:
            return gnu_names | parse_pax_records(data)
        except ValueError as error:
            raise self._malformed_error(str(error)) from None

    def _apply_overrides(self, entry: TarEntry, overrides: dict[str, str]) -> TarEntry:
        """Return the entry with its metadata; as in Go, an empty value overrides nothing."""
        name = overrides.get("L") or overrides.get("path") or entry.name
        entry_type = entry.type
        if entry_type == _V7_REGULAR:
            entry_type = DIRECTORY if name.endswith("/") else REGULAR
        size, digits = entry.size, overrides.get("size", "")
        if entry_type == DIRECTORY and size:  # a v7 directory, whose size has no meaning
            size, self._data_end_offset, self._next_header_offset = 0, self._position, self._position
        if digits and entry_type.encode("latin-1") not in _TYPES_WITHOUT_DATA:
            if not re.fullmatch("[0-9]{1,18}", digits):
                raise self._malformed_error(f"an invalid size of {digits[:40]!r} bytes")
            size = int(digits)
            self._set_data_size(size)
        linkname = overrides.get("K") or overrides.get("linkpath") or entry.linkname
        return entry._replace(name=name, type=entry_type, size=size, linkname=linkname)

    def _skip_to_header(self) -> None:
        """Move to the next header, by seeking if the stream can.

        The last byte of the data is read: that proves that the archive is not truncated.
        """
        if self._seek is not None and self._data_end_offset > self._position + 1:
            self._seek(self._data_end_offset - 1 - self._position, 1)
            self._position = self._data_end_offset - 1
        while self._position < self._next_header_offset:
            data = self._stream.read(min(self._next_header_offset - self._position, _CHUNK_SIZE))
            self._position += len(data)
            if not data and self._position < self._data_end_offset:
                raise self._malformed_error("the archive ends in the middle of a file")
            if not data:  # the last file's padding may be missing: umoci writes none
                self._next_header_offset = self._position

    def _malformed_error(self, reason: str) -> MalformedImage:
        return MalformedImage(f"tar archive, before byte {self._position}: {reason}")


class OwnerTarReader(TarReader):
    """A tar reader that can also parse the owner of the current entry, on request."""

    _current_header = _ZERO_BLOCK
    _overrides: Mapping[str, str] | None = None

    def read_owner(self) -> EntryOwner:
        """Return owner and time of the current entry; values of its pax header take precedence.

        Raises :class:`MalformedImage` for what Go's reader rejects: not a number, or not in 64 bits.
        """
        header = self._current_header
        try:
            owner = EntryOwner(
                NUMBERS[header[108:116]],
                NUMBERS[header[116:124]],
                NUMBERS[header[136:148]] * NS_PER_SECOND,
            )
            if self._overrides:
                owner = _override_owner(owner, self._overrides)
        except ValueError as error:
            raise self._malformed_error(str(error)) from None
        if not -_MAX_TIME_NS <= owner.mtime < _MAX_TIME_NS:
            raise self._malformed_error(f"an invalid time of {owner.mtime // NS_PER_SECOND} seconds")
        return owner

    def _parse_header(self, header: bytes) -> TarEntry:
        self._current_header, self._overrides = header, None
        return super()._parse_header(header)

    def _apply_overrides(self, entry: TarEntry, overrides: dict[str, str]) -> TarEntry:
        self._overrides = overrides
        return super()._apply_overrides(entry, overrides)


def _override_owner(owner: EntryOwner, overrides: Mapping[str, str]) -> EntryOwner:
    """Return the owner with the values of a pax header; as in Go, an empty value overrides nothing."""
    uid, gid, mtime = owner
    if overrides.get("uid"):
        uid = parse_int64(overrides["uid"])
    if overrides.get("gid"):
        gid = parse_int64(overrides["gid"])
    if overrides.get("mtime"):
        mtime = parse_pax_time(overrides["mtime"])
    return EntryOwner(uid, gid, mtime)


def is_tar_header(data: bytes) -> bool:
    """Return True if a file that begins with these bytes is a tar archive: 262 are enough."""
    return data[_MAGIC] == b"ustar"


def truncated_error(position: int) -> MalformedImage:
    """Return the error of an archive that ends before the data of an entry does."""
    return MalformedImage(f"the archive ends in the middle of a file, at byte {position}")
