"""What is kept of a file: all of it, or some pieces of one that is too large to hold."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Bytes", "Order", "View", "Windows"]

Order = Literal["little", "big"]
"""A byte order, as ``int.from_bytes`` names it."""


class View(Protocol):
    """A file of ``size`` bytes, of which some are at hand."""

    @property
    def size(self) -> int:
        """The whole file's length in bytes, kept or not."""

    def at(self, offset: int, size: int) -> bytes:
        """What is kept of those bytes: fewer or none past the end or where the file was not kept."""

    def find(self, needle: bytes, start: int, end: int) -> int:
        """The offset of the first occurrence in what is kept between two offsets, or -1."""


class Bytes:
    """A file that is kept whole."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def at(self, offset: int, size: int) -> bytes:
        """See :meth:`View.at`."""
        return self._data[offset : offset + size]

    def find(self, needle: bytes, start: int, end: int) -> int:
        """See :meth:`View.find`."""
        return self._data.find(needle, start, end)


class Windows:
    """A large file of which pieces are kept; they may touch or overlap."""

    __slots__ = ("_offsets", "_pieces", "size")

    def __init__(self, size: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        self.size = size
        self._pieces = sorted((start, data) for start, data in pieces if data)
        self._offsets = [start for start, _ in self._pieces]

    def at(self, offset: int, size: int) -> bytes:
        """See :meth:`View.at`; what lies beyond the first gap is not given."""
        found = bytearray()
        while len(found) < size:
            more = self._from(offset + len(found), size - len(found))
            if not more:
                break
            found += more
        return bytes(found)

    def find(self, needle: bytes, start: int, end: int) -> int:
        """See :meth:`View.find`; an occurrence lies in one piece."""
        for first, data in self._pieces:
            if first < end and start < first + len(data):
                at = data.find(needle, max(start - first, 0), end - first)
                if at >= 0:
                    return first + at
        return -1

    def _from(self, offset: int, size: int) -> bytes:
        """The bytes that one piece has from there on: the last that starts early enough, or an earlier."""
        for number in range(bisect_right(self._offsets, offset) - 1, -1, -1):
            start, data = self._pieces[number]
            if offset < start + len(data):
                return data[offset - start : offset - start + size]
        return b""
