"""What is kept of a file: all of it, or some pieces of one that is too large to hold."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ByteOrder", "FileView", "PartialFile", "WholeFile"]

ByteOrder = Literal["little", "big"]
"""A byte order, as ``int.from_bytes`` names it."""


class FileView(Protocol):
    """A file of ``size`` bytes, of which some are at hand."""

    @property
    def size(self) -> int:
        """The whole file's length in bytes, kept or not."""

    def read_at(self, offset: int, size: int) -> bytes:
        """What is kept of those bytes: fewer or none past the end or where the file was not kept."""

    def find(self, needle: bytes, start: int, end: int) -> int:
        """The offset of the first occurrence in what is kept between two offsets, or -1."""


class WholeFile:
    """A file that is kept whole."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        """See :meth:`View.at`."""
        return self._data[offset : offset + size]

    def find(self, needle: bytes, start: int, end: int) -> int:
        """See :meth:`View.find`."""
        return self._data.find(needle, start, end)


class PartialFile:
    """A large file of which pieces are kept; they may touch or overlap."""

    __slots__ = ("_offsets", "_pieces", "size")

    def __init__(self, size: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        self.size = size
        self._pieces = sorted((start, data) for start, data in pieces if data)
        self._offsets = [start for start, _ in self._pieces]

    def read_at(self, offset: int, size: int) -> bytes:
        """See :meth:`View.at`; what lies beyond the first gap is not given."""
        data = bytearray()
        while len(data) < size:
            piece = self._read_piece(offset + len(data), size - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)

    def find(self, needle: bytes, start: int, end: int) -> int:
        """See :meth:`View.find`; an occurrence lies in one piece."""
        for piece_offset, data in self._pieces:
            if piece_offset < end and start < piece_offset + len(data):
                position = data.find(needle, max(start - piece_offset, 0), end - piece_offset)
                if position >= 0:
                    return piece_offset + position
        return -1

    def _read_piece(self, offset: int, size: int) -> bytes:
        """The bytes that one piece has from there on: the last that starts early enough, or an earlier."""
        for index in range(bisect_right(self._offsets, offset) - 1, -1, -1):
            start, data = self._pieces[index]
            if offset < start + len(data):
                return data[offset - start : offset - start + size]
        return b""
