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
from buildkit_tasks.oci.streams import FileSlice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.source import Source

__all__ = ["CachingSource", "cached_source"]

_MAX_CACHE_SIZE = 8 << 30  # bytes: what is beyond is fetched twice
_MAX_PREFETCH_SIZE = 4 << 20  # bytes: what is larger is better read while it comes
_PREFETCH_JOBS = 8


@contextlib.contextmanager
def cached_source(source: Source, cache_dir: Path) -> Iterator[CachingSource]:
    """The source, its blobs kept in a file on that folder's disk; the small ones are on their way."""
    with tempfile.TemporaryFile(dir=cache_dir) as file:
        cache = CachingSource(source, file.fileno())
        # By one thread: a registry's scheme and login are found out with the first answer.
        with contextlib.suppress(BuildkitTasksError):
            cache.root_descriptor()
        with ThreadPoolExecutor(_PREFETCH_JOBS) as pool:
            prefetcher = threading.Thread(target=_prefetch_image, args=(cache, pool))
            prefetcher.start()
            try:
                yield cache
            finally:
                cache.stopped = True
                prefetcher.join()
                pool.shutdown(wait=True, cancel_futures=True)


def _prefetch_image(cache: CachingSource, pool: ThreadPoolExecutor) -> None:
    """Fetch the manifests, then what they name, as far as that is small.

    What is wrong with any of it is for its reader to find and to tell.
    """
    with contextlib.suppress(BuildkitTasksError, OSError):
        root = cache.root_descriptor()
        if root.media_type not in INDEX_TYPES:
            return
        entries = parse_index(read_blob(cache, root, LIMITS.document_bytes), root.media_type).manifests
        cache.prefetch(entries, pool)
        for each in entries:
            if each.media_type in MANIFEST_TYPES and each.size <= _MAX_PREFETCH_SIZE:
                with contextlib.suppress(MalformedImage):
                    manifest = parse_manifest(read_blob(cache, each, _MAX_PREFETCH_SIZE), each.media_type)
                    cache.prefetch((manifest.config, *manifest.layers), pool)


class CachingSource:
    """A source whose blobs, once read to their ends, are read from a file. For several threads."""

    def __init__(self, source: Source, fd: int) -> None:
        self._source = source
        self._fd = fd
        self._lock = threading.Lock()
        self._allocated = 0
        self._regions: dict[Digest, tuple[int, int]] = {}
        self._pending: dict[Digest, Future[object]] = {}
        self.stopped = False

    def root_descriptor(self) -> Descriptor:
        """The source's own."""
        return self._source.root_descriptor()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob from the file, or from the source and into the file."""
        pending = self._pending.get(descriptor.digest)
        if pending is not None:
            wait([pending])
        return self._open_blob(descriptor)

    def prefetch(self, blobs: Iterable[Descriptor], pool: ThreadPoolExecutor) -> None:
        """Begin to fetch those that are small, each once."""
        for each in blobs:
            if each.size <= _MAX_PREFETCH_SIZE and each.digest not in self._pending and not each.urls:
                self._pending[each.digest] = pool.submit(self._fetch_blob, each)

    def _fetch_blob(self, descriptor: Descriptor) -> None:
        if self.stopped:
            return
        with contextlib.closing(self._open_blob(descriptor)) as stream:
            while stream.read(_MAX_PREFETCH_SIZE):
                pass

    def _open_blob(self, descriptor: Descriptor) -> BinaryIO:
        region = self._regions.get(descriptor.digest)
        if region is not None:
            return cast("BinaryIO", io.BufferedReader(FileSlice(self._fd, *region), 1 << 18))
        offset = self._reserve(descriptor.size)
        stream = self._source.open(descriptor)
        if offset is None:
            return stream
        return cast("BinaryIO", _TeeStream(stream, self, descriptor, offset))

    def write_at(self, data: bytes, offset: int) -> bool:
        """Keep a piece; gives whether there was room on the disk."""
        try:
            return os.pwrite(self._fd, data, offset) == len(data)
        except OSError:
            return False

    def mark_complete(self, digest: Digest, offset: int, size: int) -> None:
        """A blob lies there whole."""
        self._regions[digest] = (offset, size)

    def _reserve(self, size: int) -> int | None:
        """Where a blob of that size may be put; None where it may not."""
        with self._lock:
            if size < 0 or self._allocated + size > _MAX_CACHE_SIZE:
                return None
            offset = self._allocated
            self._allocated += size
            return offset


class _TeeStream(io.RawIOBase):
    """A stream of the source that is written down as it is read."""

    def __init__(self, stream: BinaryIO, cache: CachingSource, descriptor: Descriptor, offset: int) -> None:
        super().__init__()
        self._stream = stream
        self._cache = cache
        self._descriptor = descriptor
        self._offset = offset
        self._position = 0
        self._is_intact = True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """As the source gives it; what is longer than it says is not kept."""
        data = self._stream.read(size)
        if self._is_intact and data:
            self._is_intact = self._position + len(data) <= self._descriptor.size
            self._is_intact = self._is_intact and self._cache.write_at(data, self._offset + self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            if self._is_intact and self._position == self._descriptor.size:
                self._cache.mark_complete(self._descriptor.digest, self._offset, self._position)
        super().close()
