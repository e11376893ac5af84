"""An image that is read twice and fetched once: its blobs are kept in one file without a name.

Nothing of it is trusted for having been here: whoever reads a blob checks its digest, the second time
as the first. The file is gone with the process that opened it, however that ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buildkit_tasks.oci.blobs import Source
    from buildkit_tasks.oci.model import Descriptor, Digest

__all__ = ["Kept", "keeping"]

_MOST = 8 << 30  # bytes: what is beyond is fetched twice


@contextlib.contextmanager
def keeping(source: Source, folder: Path) -> Iterator[Kept]:
    """The source, its blobs kept in a file of that folder's disk until the end."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield Kept(source, file.fileno())


class Kept:
    """A source whose blobs, once read to their ends, are read from a file. For several threads."""

    def __init__(self, source: Source, descriptor: int) -> None:
        self._source = source
        self._file = descriptor
        self._lock = threading.Lock()
        self._end = 0
        self._whole: dict[Digest, tuple[int, int]] = {}

    def root(self) -> Descriptor:
        """The source's own."""
        return self._source.root()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob from the file, or from the source and into the file."""
        known = self._whole.get(descriptor.digest)
        if known is not None:
            return cast("BinaryIO", io.BufferedReader(_Region(self._file, *known), 1 << 18))
        start = self._room(descriptor.size)
        inner = self._source.open(descriptor)
        if start is None:
            return inner
        return cast("BinaryIO", _Keeping(inner, self, descriptor, start))

    def write(self, data: bytes, at: int) -> bool:
        """Keep a piece; gives whether there was room on the disk."""
        try:
            return os.pwrite(self._file, data, at) == len(data)
        except OSError:
            return False

    def note(self, digest: Digest, start: int, size: int) -> None:
        """A blob lies there whole."""
        self._whole[digest] = (start, size)

    def _room(self, size: int) -> int | None:
        """Where a blob of that size may be put; None where it may not."""
        with self._lock:
            if size < 0 or self._end + size > _MOST:
                return None
            start = self._end
            self._end += size
            return start


class _Keeping(io.RawIOBase):
    """A stream of the source that is written down as it is read."""

    def __init__(self, inner: BinaryIO, kept: Kept, descriptor: Descriptor, start: int) -> None:
        super().__init__()
        self._inner = inner
        self._kept = kept
        self._descriptor = descriptor
        self._start = start
        self._at = 0
        self._good = True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """As the source gives it; what is longer than it says is not kept."""
        data = self._inner.read(size)
        if self._good and data:
            self._good = self._at + len(data) <= self._descriptor.size
            self._good = self._good and self._kept.write(data, self._start + self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            if self._good and self._at == self._descriptor.size:
                self._kept.note(self._descriptor.digest, self._start, self._at)
        super().close()


class _Region(io.RawIOBase):
    """A part of the file, read by position: others read it at the same time."""

    def __init__(self, file: int, start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._at = start
        self._stop = start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._file, min(len(buffer), self._stop - self._at), self._at)
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)
