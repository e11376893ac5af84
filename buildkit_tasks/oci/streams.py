"""Base classes of raw read-only streams."""

from __future__ import annotations

import io
import os
from abc import abstractmethod

__all__ = ["FileSlice", "RawReader"]


class RawReader(io.RawIOBase):
    """A read-only raw stream; subclasses implement :meth:`read_some`."""

    @abstractmethod
    def read_some(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; none at the end."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, or all of them, without copying what :meth:`read_some` returns."""
        return self.read_some(size) if size >= 0 else self.readall()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer`` from :meth:`read_some`."""
        data = self.read_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class FileSlice(RawReader):
    """A section of an open file with its own position: several threads may read one file descriptor.

    Closing the stream leaves the file open.
    """

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._start = offset
        self._size = size
        self._position = 0

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the section; return the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read_some(self, size: int) -> bytes:
        """Return the next bytes of the section."""
        count = max(min(size, self._size - self._position), 0)
        data = os.pread(self._fd, count, self._start + self._position)
        self._position += len(data)
        return data
