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
    "BLOCK",
    "DIRECTORY",
    "HARD_LINK",
    "REGULAR",
    "SYMLINK",
    "Entry",
    "OwnedReader",
    "Owner",
    "TarReader",
    "cut_off",
]

BLOCK = 512
REGULAR, HARD_LINK, SYMLINK, DIRECTORY = "0", "1", "2", "5"

_ZERO = bytes(BLOCK)
_HEADER = struct.Struct("100s8s16x12s12x8sc100s8s80x155s12x")
_SIGNED = struct.Struct("148b8x356b")
_BASE_256 = 0x80  # GNU: the top bit says that the number is binary
_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_MAX_SIZE = 1 << 50  # a pebibyte: past it the number is an attack on whoever adds to it
_MAX_PAX = 1 << 20
_MAX_PATH = 4096
_MAX_RECORDS = 1024
_CHUNK = 1 << 20
_MAX_KNOWN = 4096
_made = tuple.__new__
# Links, devices, folders, FIFOs: their size field means nothing.
_NO_DATA = frozenset([b"1", b"2", b"3", b"4", b"5", b"6"])
_METADATA = frozenset("xgLK")
_OWNER = frozenset(["uid", "gid", "mtime"])  # what pax headers say besides names and sizes
_OLD = "\0"  # before POSIX: a file, or a folder if its name, whole, ends in a slash
_RECORD = re.compile(rb"([0-9]{1,7}) ")
_WHOLE = re.compile("[+-]?[0-9]+", re.ASCII)
_TIME = re.compile(r"([+-]?[0-9]+)(?:\.([0-9]*))?", re.ASCII)
_INT64 = 1 << 63
_SECOND = 1_000_000_000  # nanoseconds
_MAX_TIME = _INT64 * _SECOND
# Type flags as they come and as text, for the kinds that most entries have.
_USUAL_FLAGS = {b"0": REGULAR, b"1": HARD_LINK, b"2": SYMLINK, b"5": DIRECTORY}


class Stream(Protocol):
    """What is read from: a file, or a layer that is unpacked on the way."""

    def read(self, size: int, /) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""

    def seekable(self) -> bool:
        """Whether it has a ``seek``, by which data can be gone past without reading them."""


class Entry(NamedTuple):
    """One member: ``type`` is the header's type flag, ``offset`` where its data begin."""

    name: str
    type: str
    size: int
    linkname: str
    mode: int
    offset: int


class Owner(NamedTuple):
    """Whose an entry is, by number, and when it was changed: nanoseconds since 1970."""

    uid: int
    gid: int
    mtime: int


class TarReader:
    """Iterates over the entries of a stream; :meth:`read` gives the data of the current one.

    Raises :class:`MalformedImage` with the offset for anything that is not a well-formed archive
    and :class:`LimitExceeded` past the cap on entries.
    """

    def __init__(self, stream: Stream, *, max_entries: int = LIMITS.entries) -> None:
        self._stream = stream
        self._seek: Callable[[int, int], int] | None = getattr(stream, "seek") if stream.seekable() else None  # noqa: B009
        self._left = max_entries
        self._position = 0  # where the stream is
        self._next = 0  # where the next header is
        self._end = 0  # where the current member's data end
        self._entries = self._walk()

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def __next__(self) -> Entry:
        return next(self._entries)

    @property
    def left(self) -> int:
        """How many bytes of the current entry's data were not read."""
        return self._end - self._position

    def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes of the current entry's data, from where the last call ended."""
        wanted = min(limit, self._end - self._position)
        data = self._stream.read(wanted)
        self._position += len(data)
        if len(data) != wanted:
            raise cut_off(self._position)
        return data

    def _walk(self) -> Iterator[Entry]:
        overrides: dict[str, str] = {}
        read = self._stream.read
        while True:
            if self._position != self._next:
                self._skip()
            header = read(BLOCK)
            self._position += len(header)
            if len(header) != BLOCK or header == _ZERO:
                self._check_end(header)
                break
            entry = self._parse(header)
            if entry.type in _METADATA:
                overrides = self._metadata(entry, overrides)
            elif overrides or entry.type == _OLD:
                yield self._finished(entry, overrides)
                overrides = {}
            else:
                yield entry
        if not overrides.keys() <= _OWNER:
            raise self._broken("the archive ends after a name, before its entry")

    def _check_end(self, block: bytes) -> None:
        """An archive ends with two zero blocks, or with nothing more."""
        if len(block) == BLOCK:
            block = self._stream.read(BLOCK)
            self._position += len(block)
            if block not in (_ZERO, b""):
                raise self._broken("one zero block and then more")
        elif block:
            raise self._broken("the archive ends in the middle of a header")
        self._next = self._position

    def _parse(self, header: bytes) -> Entry:
        name, mode, digits, checksum, flag, link, magic, prefix = _HEADER.unpack(header)
        self._left -= 1
        if self._left < 0:
            raise LimitExceeded("the archive has too many entries")
        try:
            if (_adler32(header) - _SUMS[checksum]) & 0xFFFF:
                _check(header, checksum)
            size, permissions = 0 if flag in _NO_DATA else _NUMBERS[digits], _NUMBERS[mode]
        except ValueError as error:
            raise self._broken(str(error)) from None
        name = name.partition(b"\0")[0]
        if prefix[0] and magic.startswith(b"ustar"):
            name = self._prefix(header, prefix, magic) + name
        kind = _USUAL_FLAGS.get(flag) or self._kind(flag)
        self._end = self._next = position = self._position
        if size:
            self._span(size)
        linkname = _text(link.partition(b"\0")[0]) if link[0] else ""
        # What NamedTuple's own constructor does, at half its price: there may be millions.
        return _made(Entry, (_text(name), kind, size, linkname, permissions, position))

    def _prefix(self, header: bytes, prefix: bytes, magic: bytes) -> bytes:
        """What stands before the name, with its slash. GNU's headers have times there instead."""
        if magic[:6] == b"ustar\0":  # the version does not count
            short = prefix[:131] if header[508:] == b"tar\0" else prefix  # star has times behind it
            return short.partition(b"\0")[0] + b"/"
        if magic == b"ustar  \0" and any(map(_is_damaged, (prefix[:12], prefix[12:24]))):
            raise self._broken("a GNU header with damaged times, which Go takes for a part of the name")
        return b""

    def _kind(self, flag: bytes) -> str:
        if flag == b"S":
            raise self._broken("sparse files are not supported")
        return flag.decode("latin-1")

    def _span(self, size: int) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise self._broken(f"a size of {size} bytes")
        self._end = self._position + size
        self._next = self._end + -size % BLOCK

    def _metadata(self, entry: Entry, before: dict[str, str]) -> dict[str, str]:
        """What is said about the entry that follows: pax headers by their keys, GNU's by their types.

        As in Go, of several pax headers the last counts alone; a global one drops what was said.
        """
        limit = _MAX_PAX if entry.type in "xg" else _MAX_PATH + 1
        if entry.size > limit:
            raise self._broken(f"a metadata record of {entry.size} bytes; {limit} are allowed")
        data = self.read(entry.size)
        if entry.type == "g":
            return {}
        if entry.type == "x":
            return {kind: text for kind, text in before.items() if kind in "LK"} | self._pax(data)
        return before | {entry.type: _text(data.partition(b"\0")[0])}

    def _pax(self, data: bytes) -> dict[str, str]:
        """The path, linkpath, size and owner of records ``LENGTH KEY=VALUE`` with a newline at their end."""
        found: dict[str, str] = {}
        at = records = 0
        while at < len(data):
            match, records = _RECORD.match(data, at), records + 1
            end = at + int(match[1]) if match else 0
            record = data[match.end() : end] if match else b""
            key, equals, value = record[:-1].partition(b"=")
            if not equals or record[-1:] != b"\n" or end > len(data) or records > _MAX_RECORDS:
                raise self._broken("a malformed pax record")
            if key in (b"path", b"linkpath", b"size"):
                found[key.decode()] = self._pax_value(value)
            elif key in (b"mtime", b"uid", b"gid"):
                found[key.decode()] = _text(value)
            elif key.startswith(b"GNU.sparse."):
                raise self._broken("sparse files are not supported")
            at = end
        return found

    def _pax_value(self, value: bytes) -> str:
        if len(value) > _MAX_PATH or b"\0" in value:
            raise self._broken("a pax path that is too long or holds a NUL")
        return _text(value)

    def _finished(self, entry: Entry, overrides: dict[str, str]) -> Entry:
        """The entry with its metadata; an empty value takes none of them back."""
        name = overrides.get("L") or overrides.get("path") or entry.name
        kind = entry.type
        if kind == _OLD:
            kind = DIRECTORY if name.endswith("/") else REGULAR
        size, digits = entry.size, overrides.get("size", "")
        if kind == DIRECTORY and size:  # an old one: a folder has no data
            size, self._end, self._next = 0, self._position, self._position
        if digits and kind.encode("latin-1") not in _NO_DATA:
            if not re.fullmatch("[0-9]{1,18}", digits):
                raise self._broken(f"a size of {digits[:40]!r} bytes")
            size = int(digits)
            self._span(size)
        linkname = overrides.get("K") or overrides.get("linkpath") or entry.linkname
        return entry._replace(name=name, type=kind, size=size, linkname=linkname)

    def _skip(self) -> None:
        """Go to the next header, by seeking where the stream can.

        Seeking stops one byte before it: reading that byte proves that the data were there.
        """
        if self._seek is not None and self._end > self._position + 1:
            self._seek(self._end - 1 - self._position, 1)
            self._position = self._end - 1
        while self._position < self._next:
            data = self._stream.read(min(self._next - self._position, _CHUNK))
            self._position += len(data)
            if not data and self._position < self._end:
                raise self._broken("the archive ends in the middle of a file")
            if not data:
                self._next = self._position  # the last file's padding may be missing: umoci writes none

    def _broken(self, cause: str) -> MalformedImage:
        return MalformedImage(f"tar archive, before byte {self._position}: {cause}")


class OwnedReader(TarReader):
    """The same reader, which can tell whose the current entry is: who does not ask does not pay."""

    _header = _ZERO
    _said: Mapping[str, str] | None = None

    def owner(self) -> Owner:
        """Owner and time of the current entry, of its pax header where that has them.

        Raises :class:`MalformedImage` for what Go's reader refuses: no number, or one past 64 bits.
        """
        header = self._header
        try:
            found = Owner(
                _NUMBERS[header[108:116]], _NUMBERS[header[116:124]], _NUMBERS[header[136:148]] * _SECOND
            )
            if self._said:
                found = _overridden(found, self._said)
        except ValueError as error:
            raise self._broken(str(error)) from None
        if not -_MAX_TIME <= found.mtime < _MAX_TIME:
            raise self._broken(f"a time of {found.mtime // _SECOND} seconds")
        return found

    def _parse(self, header: bytes) -> Entry:
        self._header, self._said = header, None
        return super()._parse(header)

    def _finished(self, entry: Entry, overrides: dict[str, str]) -> Entry:
        self._said = overrides
        return super()._finished(entry, overrides)


def _overridden(owner: Owner, said: Mapping[str, str]) -> Owner:
    """What a pax header says instead; as in Go, an empty value says nothing.

    Raises :class:`ValueError`.
    """
    uid, gid, mtime = owner
    if said.get("uid"):
        uid = _whole(said["uid"])
    if said.get("gid"):
        gid = _whole(said["gid"])
    if said.get("mtime"):
        mtime = _time(said["mtime"])
    return Owner(uid, gid, mtime)


def _whole(text: str) -> int:
    """A decimal number of 64 bits: Go's ``strconv.ParseInt``."""
    if not _WHOLE.fullmatch(text) or not -_INT64 <= int(text) < _INT64:
        raise ValueError(f"{text[:40]!r} is no number of 64 bits")
    return int(text)


def _time(text: str) -> int:
    """Seconds with a fraction as nanoseconds, finer ones dropped: Go's ``parsePAXTime``."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no time")
    fraction = int((match[2] or "")[:9].ljust(9, "0"))
    return _whole(match[1]) * _SECOND + (-fraction if text[0] == "-" else fraction)


def _check(header: bytes, field: bytes) -> None:
    """Compare the header's sum of bytes, counted with its checksum field as blanks.

    Some writers summed signed bytes.
    """
    sums = (sum(header) - sum(field) + 256, sum(_SIGNED.unpack(header)) + 256)
    if _number(field) not in sums:
        raise ValueError("the header's checksum does not hold")


def _sum_with(field: bytes) -> int:
    """The low half of the Adler-32 of a header with this checksum, if the checksum holds.

    That half is one more than the sum of the bytes, modulo 65521, at C speed. A header for which it
    is not this is added up byte by byte.
    """
    return 1 + _number(field) - 256 + sum(field)


def cut_off(position: int) -> MalformedImage:
    """What is wrong with an archive that ends where data should be."""
    return MalformedImage(f"the archive ends in the middle of a file, at byte {position}")


def _is_damaged(field: bytes) -> bool:
    if not field[0]:
        return False
    try:
        _number(field)
    except ValueError:
        return True
    return False


def _number(field: bytes) -> int:
    """A number of a header. Raises :class:`ValueError`."""
    digits = field.rstrip(b"\0 ")
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)
    if field[0] & _BASE_256:
        value = int.from_bytes(field, "big", signed=True)
        return value + (1 << (len(field) * 8 - 1)) if value < 0 and field[0] == _BASE_256 else value
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise ValueError(f"{field!r} is no octal number")
    return int(match[1] or b"0", 8)


def _text(raw: bytes) -> str:
    return raw.decode() if raw.isascii() else raw.decode("utf-8", "surrogateescape")  # twice as fast


class _Known(dict[bytes, int]):
    """What fields mean, of which most are the same few: a look-up costs a quarter of ``lru_cache``'s."""

    def __init__(self, meaning: Callable[[bytes], int]) -> None:
        self._meaning = meaning

    def __missing__(self, field: bytes) -> int:
        if len(self) >= _MAX_KNOWN:
            self.clear()
        value = self[field] = self._meaning(field)
        return value


_NUMBERS = _Known(_number)
_SUMS = _Known(_sum_with)
