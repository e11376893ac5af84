"""The names of a directory's plain files and symbolic links, packed into one buffer.

A layer may have millions of files of which only name and mode matter; one object each would exhaust memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

__all__ = ["PackedEntry", "PackedNames"]

_OCTAL_MODES = [f"{mode:03o}" for mode in range(0o1000)]
_MODE_LENGTH = 3
_INDEX_THRESHOLD = 64 << 20  # bytes scanned by look-ups before an index is built
_MAX_INDEXED_NAMES = 1_000_000


class PackedEntry(NamedTuple):
    """A file's permissions, or with ``target`` a symbolic link."""

    mode: int
    target: str | None = None


class PackedNames:
    r"""A list of names; the last record of a name wins.

    A record is ``MODE NAME \0`` or, for a symbolic link, ``MODE NAME / TARGET \0`` without the spaces:
    three octal digits, then a name, which cannot contain a slash. A look-up scans the buffer; after many
    look-ups, which a malicious image can provoke, an index is built.
    """

    __slots__ = ("_buffer", "_index", "_removed", "_scanned_bytes")

    def __init__(self, packed: bytes = b"") -> None:
        self._buffer = bytearray(packed)
        self._scanned_bytes = 0
        self._index: dict[bytes, int] | None = None
        self._removed: dict[bytes, int] = {}  # the length of the buffer when the name was removed

    def add(self, name: str, mode: int, target: str | None = None) -> None:
        """Add a file, or with ``target`` a symbolic link."""
        if self._index is not None:
            self._index[_encode_name(name)] = len(self._buffer)
        if target is not None:
            name = f"{name}/{target}"
        self._buffer += _encode_name(f"{_OCTAL_MODES[mode & 0o777]}{name}\0")

    def remove(self, name: str) -> None:
        """Remove a name, whether it is there or not; it may be added again."""
        self._removed[_encode_name(name)] = len(self._buffer)

    def find(self, name: str) -> PackedEntry | None:
        """Return the entry of that name, or None. Raises :class:`LimitExceeded` for a too large index."""
        encoded = _encode_name(name)
        is_indexed = self._scanned_bytes > _INDEX_THRESHOLD
        offset = self._look_up(encoded) if is_indexed else self._scan_records(encoded)
        if offset < self._removed.get(encoded, 0):
            return None
        name_offset = offset + _MODE_LENGTH
        end = self._buffer.index(b"\0", offset)
        mode = int(self._buffer[offset:name_offset], 8)
        link_field = self._buffer[name_offset + len(encoded) : end]
        return PackedEntry(mode, _decode_name(link_field[1:]) if link_field else None)

    def __iter__(self) -> Iterator[str]:
        for name, _, _ in self._iter_records():
            yield _decode_name(name)

    def __len__(self) -> int:
        return self._buffer.count(0)

    def exclude_names(self, names: Container[str]) -> PackedNames:
        """Return a copy without these names."""
        remaining = (record for name, record, _ in self._iter_records() if _decode_name(name) not in names)
        return PackedNames(b"".join(record + b"\0" for record in remaining))

    def _scan_records(self, encoded: bytes) -> int:
        """Return the offset of the last record of the name, or -1."""
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
                raise LimitExceeded(f"the image needs too many look-ups in a directory of {len(self)} files")
            self._index = {name: offset for name, _, offset in self._iter_records()}
        return self._index.get(encoded, -1)

    def _iter_records(self) -> Iterator[tuple[bytes, bytearray, int]]:
        """Yield each name with its record and the offset of that."""
        offset = 0
        for record in self._buffer.split(b"\0")[:-1]:
            name = bytes(record[_MODE_LENGTH:].partition(b"/")[0])
            if offset >= self._removed.get(name, 0):
                yield name, record, offset
            offset += len(record) + 1


def _encode_name(name: str) -> bytes:
    return name.encode() if name.isascii() else name.encode("utf-8", "surrogateescape")


def _decode_name(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "surrogateescape")
