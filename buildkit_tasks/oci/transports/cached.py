"""An image that is read twice and fetched once: its blobs are kept in one file without a name.

An image of ten platforms has a hundred small blobs, whose answers would be waited for one by one: those
are fetched several at once, ahead of who reads them. Nothing of it is trusted for having been here:
whoever reads a blob checks its digest, the second time as the first. The file is gone with the process
that opened it, however that ends.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, BinaryIO, cast

from buildkit_tasks.errors import BuildkitTasksError, MalformedImage
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, parse_index, parse_manifest
from buildkit_tasks.oci.source import read_blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.source import Source

__all__ = ["Kept", "keeping"]

_MOST = 8 << 30  # bytes: what is beyond is fetched twice
_SMALL = 4 << 20  # bytes: what is larger is better read while it comes
_JOBS = 8


@contextlib.contextmanager
def keeping(source: Source, folder: Path) -> Iterator[Kept]:
    """The source, its blobs kept in a file on that folder's disk; the small ones are on their way."""
    with tempfile.TemporaryFile(dir=folder) as file:
        kept = Kept(source, file.fileno())
        # By one thread: a registry's scheme and login are found out with the first answer.
        with contextlib.suppress(BuildkitTasksError):
            kept.root()
        with ThreadPoolExecutor(_JOBS) as pool:
            ahead = threading.Thread(target=_fetch_ahead, args=(kept, pool))
            ahead.start()
            try:
                yield kept
            finally:
                kept.stopped = True
                ahead.join()
                pool.shutdown(wait=True, cancel_futures=True)


def _fetch_ahead(kept: Kept, pool: ThreadPoolExecutor) -> None:
    """Fetch the manifests, then what they name, as far as that is small.

    What is wrong with any of it is for its reader to find and to tell.
    """
    with contextlib.suppress(BuildkitTasksError, OSError):
        root = kept.root()
        if root.media_type not in INDEX_TYPES:
            return
        listed = parse_index(read_blob(kept, root, LIMITS.document), root.media_type).manifests
        kept.fetch(listed, pool)
        for each in listed:
            if each.media_type in MANIFEST_TYPES and each.size <= _SMALL:
                with contextlib.suppress(MalformedImage):
                    manifest = parse_manifest(read_blob(kept, each, _SMALL), each.media_type)
                    kept.fetch((manifest.config, *manifest.layers), pool)


class Kept:
    """A source whose blobs, once read to their ends, are read from a file. For several threads."""

    def __init__(self, source: Source, descriptor: int) -> None:
        self._source = source
        self._file = descriptor
        self._lock = threading.Lock()
        self._end = 0
        self._whole: dict[Digest, tuple[int, int]] = {}
        self._coming: dict[Digest, Future[object]] = {}
        self.stopped = False

    def root(self) -> Descriptor:
        """The source's own."""
        return self._source.root()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob from the file, or from the source and into the file."""
        coming = self._coming.get(descriptor.digest)
        if coming is not None:
            wait([coming])
        return self._open(descriptor)

    def fetch(self, blobs: Iterable[Descriptor], pool: ThreadPoolExecutor) -> None:
        """Begin to fetch those that are small, each once."""
        for each in blobs:
            if each.size <= _SMALL and each.digest not in self._coming and not each.urls:
                self._coming[each.digest] = pool.submit(self._fetch, each)

    def _fetch(self, descriptor: Descriptor) -> None:
        if self.stopped:
            return
        with contextlib.closing(self._open(descriptor)) as stream:
            while stream.read(_SMALL):
                pass

    def _open(self, descriptor: Descriptor) -> BinaryIO:
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
