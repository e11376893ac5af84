"""Cache the blobs of a source in a file, for an image that is read twice: verified, then run.

The file has no name, so that it is gone when the process ends, however that happens. Blobs are not
trusted for being cached: the reader checks the digest on every read.

=============================== ====================================================================
state of a blob                 what :meth:`CachingSource.open` does
=============================== ====================================================================
not read yet                    reads the source and writes every piece to the file
being fetched ahead             waits for that, then continues as for one of the other states
read to its end, size as stated reads the file
read, but not stored            reads the source again: the blob is longer or shorter than stated, its
                                reader stopped early, or the cache or the disk is full
=============================== ====================================================================
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from buildkit_tasks.errors import BuildkitTasksError, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.streams import FileSlice, RawReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.source import Source

__all__ = ["CachingSource", "cached_source"]

_MAX_CACHE_SIZE = 8 << 30  # bytes; blobs past it are read from the source each time
_MAX_PREFETCH_SIZE = 4 << 20  # bytes; a larger blob is better processed while it arrives
_PREFETCH_JOBS = 8
_BUFFER_SIZE = 1 << 18


@contextlib.contextmanager
def cached_source(source: Source, cache_dir: Path) -> Iterator[Image]:
    """Yield the image with its blobs cached in a file in ``cache_dir``.

    Small blobs are fetched in the background, several at once: an image of ten platforms has a hundred
    of them, which would take as many round trips one after the other.
    """
    with tempfile.TemporaryFile(dir=cache_dir) as file, ThreadPoolExecutor(_PREFETCH_JOBS) as pool:
        cache = CachingSource(source, file.fileno())
        image = Image(cache)
        with contextlib.suppress(BuildkitTasksError):
            # Read by this thread: the first response decides the registry's scheme and authentication.
            pool.submit(_prefetch_image, image, image.index.manifests, cache, pool)
        try:
            yield image
        finally:
            cache.stopped = True


def _prefetch_image(
    image: Image, entries: Iterable[Descriptor], cache: CachingSource, pool: ThreadPoolExecutor
) -> None:
    """Fetch the small manifests, then the small blobs that they list. Errors are left to the reader."""
    small_entries = [entry for entry in entries if entry.size <= _MAX_PREFETCH_SIZE]
    for entry in small_entries:
        cache.prefetch(entry, pool)
    for entry in small_entries:
        if cache.stopped:
            return
        with contextlib.suppress(MalformedImage):
            for blob in image.blobs(entry):
                cache.prefetch(blob, pool)


class _Region(NamedTuple):
    """A section of the file."""

    offset: int
    size: int


class CachingSource:
    """A source that stores what is read in a file and reads it from there afterwards. Thread-safe.

    Fetches that have not started when ``stopped`` is set end at once.
    """

    def __init__(self, source: Source, fd: int) -> None:
        self._source = source
        self._fd = fd
        self._lock = threading.Lock()
        self._allocated = 0
        self._stored: dict[Digest, _Region] = {}
        self._fetches: dict[Digest, Future[None]] = {}
        self._opened: set[Digest] = set()  # by a reader, before a fetch began
        self.stopped = False

    def root_descriptor(self) -> Descriptor:
        """Return the root of the cached source."""
        return self._source.root_descriptor()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the blob, from the file if possible."""
        with self._lock:
            fetch = self._fetches.get(descriptor.digest)
            if fetch is None:
                self._opened.add(descriptor.digest)
        if fetch is not None:
            wait([fetch])
        return self._open_now(descriptor)

    def prefetch(self, descriptor: Descriptor, pool: ThreadPoolExecutor) -> None:
        """Start to fetch a blob, unless it is large, stored elsewhere (``urls``) or being read already."""
        if descriptor.size > _MAX_PREFETCH_SIZE or descriptor.urls:
            return
        with self._lock:
            if descriptor.digest not in self._fetches and descriptor.digest not in self._opened:
                self._fetches[descriptor.digest] = pool.submit(self._fetch, descriptor)

    def _fetch(self, descriptor: Descriptor) -> None:
        if not self.stopped:
            with contextlib.closing(self._open_now(descriptor)) as stream:
                while stream.read(_MAX_PREFETCH_SIZE):
                    pass

    def _open_now(self, descriptor: Descriptor) -> BinaryIO:
        stored = self._stored.get(descriptor.digest)
        if stored is not None:
            return io.BufferedReader(FileSlice(self._fd, *stored), _BUFFER_SIZE)
        region = self._allocate(descriptor.size)
        stream = self._source.open(descriptor)
        if region is None:
            return stream
        on_stored = partial(self._stored.__setitem__, descriptor.digest, region)
        return cast("BinaryIO", _StoringStream(stream, self._fd, region, on_stored))

    def _allocate(self, size: int) -> _Region | None:
        with self._lock:
            if self._allocated + size > _MAX_CACHE_SIZE:
                return None
            region = _Region(self._allocated, size)
            self._allocated += size
            return region


class _StoringStream(RawReader):
    """A source's stream that writes what is read to a region of a file.

    ``on_stored`` is called on close if the region was filled exactly.
    """

    def __init__(self, stream: BinaryIO, fd: int, region: _Region, on_stored: Callable[[], None]) -> None:
        super().__init__()
        self._stream = stream
        self._fd = fd
        self._region = region
        self._on_stored = on_stored
        self._position = 0
        self._is_storable = True

    def read_some(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._is_storable = self._is_storable and self._store(data)
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            if self._is_storable and self._position == self._region.size:
                self._on_stored()
        super().close()

    def _store(self, data: bytes) -> bool:
        """Write the next piece; return False if it exceeds the region or the disk is full."""
        if self._position + len(data) > self._region.size:
            return False
        try:
            return os.pwrite(self._fd, data, self._region.offset + self._position) == len(data)
        except OSError:
            return False
