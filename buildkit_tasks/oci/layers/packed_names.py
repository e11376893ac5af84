"""The names in one folder of files and links about which nothing more is kept, packed.

A layer may have millions of them; as objects of their own they would fill the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

__all__ = ["PackedEntry", "PackedNames"]

_OCTAL_MODES = [f"{mode:03o}" for mode in range(0o1000)]
_MODE_LENGTH = 3
_INDEX_THRESHOLD = 64 << 20  # bytes gone through by look-ups before an index is made
_MAX_INDEXED_NAMES = 1_000_000


class PackedEntry(NamedTuple):
    """What is known of a name: a file's permissions, or a symbolic link's target."""

    mode: int
    target: str | None = None


class PackedNames:
    """A list of names, the latest of which counts.

    A record is three octal digits of the mode, the name, for a symbolic link a slash, which no name
    holds, and its target, and a NUL. A look-up goes through the bytes; where look-ups are many, as an
    image may be made to need, an index is made.
    """

    __slots__ = ("_buffer", "_index", "_scanned_bytes")

    def __init__(self, packed: bytes = b"") -> None:
        self._buffer = bytearray(packed)
        self._scanned_bytes = 0
        self._index: dict[bytes, int] | None = None

    def add(self, name: str, mode: int, target: str | None = None) -> None:
        """Add a file, or with a ``target`` a symbolic link."""
        if self._index is not None:
            self._index[_encode_name(name)] = len(self._buffer)
        if target is not None:
            name = f"{name}/{target}"
        self._buffer += _encode_name(f"{_OCTAL_MODES[mode & 0o777]}{name}\0")

    def find(self, name: str) -> PackedEntry | None:
        """What is known of that name, or None if it is not among these."""
        encoded = _encode_name(name)
        offset = (
            self._look_up(encoded) if self._scanned_bytes > _INDEX_THRESHOLD else self._scan_records(encoded)
        )
        if offset < 0:
            return None
        end = self._buffer.index(b"\0", offset)
        mode, link_field = (
            int(self._buffer[offset : offset + _MODE_LENGTH], 8),
            self._buffer[offset + _MODE_LENGTH + len(encoded) : end],
        )
        return PackedEntry(mode, _decode_name(link_field[1:]) if link_field else None)

    def __iter__(self) -> Iterator[str]:
        for record in self._buffer.split(b"\0")[:-1]:
            yield _decode_name(record[_MODE_LENGTH:].partition(b"/")[0])

    def __len__(self) -> int:
        return self._buffer.count(0)

    def exclude_names(self, names: Container[str]) -> PackedNames:
        """The others."""
        records = self._buffer.split(b"\0")[:-1]
        remaining = (
            record + b"\0"
            for record in records
            if _decode_name(record[_MODE_LENGTH:].partition(b"/")[0]) not in names
        )
        return PackedNames(b"".join(remaining))

    def _scan_records(self, encoded: bytes) -> int:
        """Where the latest record of the name begins, or -1."""
        return max(self._find_last(encoded + b"\0"), self._find_last(encoded + b"/"))

    def _find_last(self, pattern: bytes) -> int:
        position = end = len(self._buffer)
        while (position := self._buffer.rfind(pattern, 0, position + len(pattern) - 1)) >= 0:
            start = position - _MODE_LENGTH
            if start == 0 or (start > 0 and self._buffer[start - 1] == 0):
                break
        self._scanned_bytes += end - max(position, 0)
        return position - _MODE_LENGTH if position >= 0 else -1

    def _look_up(self, encoded: bytes) -> int:
        if self._index is None:
            if len(self) > _MAX_INDEXED_NAMES:
                raise LimitExceeded(f"a folder of {len(self)} files is looked into too often")
            self._index = dict(self._iter_records())
        return self._index.get(encoded, -1)

    def _iter_records(self) -> Iterator[tuple[bytes, int]]:
        offset = 0
        for record in self._buffer.split(b"\0")[:-1]:
            yield bytes(record[_MODE_LENGTH:].partition(b"/")[0]), offset
            offset += len(record) + 1


def _encode_name(name: str) -> bytes:
    return name.encode() if name.isascii() else name.encode("utf-8", "surrogateescape")


def _decode_name(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "surrogateescape")
