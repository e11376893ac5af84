"""Random access to a file that is in memory, wholly or (a large one) in pieces."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ByteOrder", "FileView", "PartialFile", "WholeFile"]

ByteOrder = Literal["little", "big"]
"""A byte order by its name in ``int.from_bytes``."""


class FileView(Protocol):
    """A file of ``size`` bytes, all or some of which are in memory."""

    @property
    def size(self) -> int:
        """The length of the whole file in bytes."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``: those before the end of the file and the first gap."""

    def find(self, needle: bytes, start: int, end: int) -> int:
        """Return the offset of the first occurrence between two offsets, or -1."""


class WholeFile:
    """A file that is wholly in memory."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        """See :meth:`FileView.read_at`."""
        return self._data[offset : offset + size]

    def find(self, needle: bytes, start: int, end: int) -> int:
        """See :meth:`FileView.find`."""
        return self._data.find(needle, start, end)


class PartialFile:
    """Pieces of a large file, by their offsets; they may touch or overlap."""

    __slots__ = ("_offsets", "_pieces", "size")

    def __init__(self, size: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        self.size = size
        self._pieces = sorted((start, data) for start, data in pieces if data)
        self._offsets = [start for start, _ in self._pieces]

    def read_at(self, offset: int, size: int) -> bytes:
        """See :meth:`FileView.read_at`."""
        data = bytearray()
        while len(data) < size:
            piece = self._read_piece(offset + len(data), size - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)

    def find(self, needle: bytes, start: int, end: int) -> int:
        """See :meth:`FileView.find`; an occurrence that spans two pieces is not found."""
        for piece_offset, data in self._pieces:
            if piece_offset < end and start < piece_offset + len(data):
                position = data.find(needle, max(start - piece_offset, 0), end - piece_offset)
                if position >= 0:
                    return piece_offset + position
        return -1

    def _read_piece(self, offset: int, size: int) -> bytes:
        """Return the bytes at ``offset`` from the last piece that contains it."""
        for index in range(bisect_right(self._offsets, offset) - 1, -1, -1):
            start, data = self._pieces[index]
            if offset < start + len(data):
                return data[offset - start : offset - start + size]
        return b""
