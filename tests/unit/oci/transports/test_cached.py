from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.copy.graph import push_order
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.oci.source import open_verified, read_blob
from buildkit_tasks.oci.transports import cached
from buildkit_tasks.oci.transports.cached import CachingSource, cached_source
from tests.conftest import TEN
from tests.support.oci import LAYER_TAR, MemoryImage, descriptor, hello
from tests.support.waiting import wait_until


class CountingSource:
    """A source that counts how often each blob is opened."""

    def __init__(self, memory: MemoryImage) -> None:
        self.memory = memory
        self.opened: Counter[str] = Counter()

    def root_descriptor(self) -> Descriptor:
        return self.memory.root_descriptor()

    def open(self, put_blob: Descriptor) -> BinaryIO:
        self.opened[str(put_blob.digest)] += 1
        return self.memory.open(put_blob)


@pytest.fixture
def source() -> CountingSource:
    return CountingSource(hello())


@pytest.fixture
def cache(source: CountingSource) -> Iterator[CachingSource]:
    """Yield a caching source that does not prefetch."""
    with tempfile.TemporaryFile() as file:
        yield CachingSource(source, file.fileno())


def put_blob(source: CountingSource, data: bytes) -> Descriptor:
    return descriptor(source.memory.put(data, LAYER_TAR))


def test_complete_blob_is_fetched_once(source: CountingSource, cache: CachingSource) -> None:
    blobs = [put_blob(source, bytes([number]) * size) for number, size in enumerate((1, 5000, 300_000, 0))]
    for _ in range(3):
        for blob in blobs:
            assert read_blob(cache, blob, 1 << 20) == source.memory.blobs[str(blob.digest)]
    assert set(source.opened.values()) == {1}
    assert cache.root_descriptor() == source.root_descriptor()


def test_partly_read_blob_is_fetched_again(source: CountingSource, cache: CachingSource) -> None:
    large = put_blob(source, bytes(1 << 20))
    with open_verified(cache, large) as stream:
        stream.read(10)
    assert read_blob(cache, large, 1 << 20) == bytes(1 << 20)
    assert source.opened[str(large.digest)] == 2


def test_wrong_bytes_are_found_on_each_read(source: CountingSource, cache: CachingSource) -> None:
    descriptor_of_blob = put_blob(source, b"right bytes")
    source.memory.blobs[str(descriptor_of_blob.digest)] = b"other bytes"
    for _ in range(2):
        with pytest.raises(MalformedImage, match="holds other bytes"):
            read_blob(cache, descriptor_of_blob, 1 << 20)


@pytest.mark.parametrize("data", [b"too long a blob", b"short"])
def test_wrong_size_is_not_stored(source: CountingSource, cache: CachingSource, data: bytes) -> None:
    descriptor_of_blob = put_blob(source, b"ten bytes.")
    source.memory.blobs[str(descriptor_of_blob.digest)] = data
    other = put_blob(source, b"the next blob")
    read_blob(cache, other, 1 << 20)
    for _ in range(2):
        with pytest.raises(MalformedImage):
            read_blob(cache, descriptor_of_blob, 1 << 20)
    assert source.opened[str(descriptor_of_blob.digest)] == 2
    assert read_blob(cache, other, 1 << 20) == b"the next blob"


def test_full_cache(source: CountingSource, cache: CachingSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_MAX_CACHE_SIZE", 1000)
    large, small, extra = (put_blob(source, bytes(size)) for size in (1001, 1000, 1))
    for each in (large, small, extra) * 2:
        read_blob(cache, each, 1 << 20)
    assert [source.opened[str(each.digest)] for each in (large, small, extra)] == [2, 1, 2]


def test_full_disk(source: CountingSource, cache: CachingSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", raise_disk_full)
    each = put_blob(source, b"some bytes")
    assert [read_blob(cache, each, 1 << 20) for _ in range(2)] == [b"some bytes"] * 2
    assert source.opened[str(each.digest)] == 2


def test_concurrent_reads(source: CountingSource, cache: CachingSource) -> None:
    blobs = [put_blob(source, os.urandom(100_000)) for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda each: read_blob(cache, each, 1 << 20), blobs * 10))
    assert contents == [source.memory.blobs[str(blob.digest)] for blob in blobs * 10]
    assert sum(source.opened.values()) < 100


class BlockingSource(CountingSource):
    """Opens blobs other than the root only when as many as ``parties`` are opened at the same time."""

    def __init__(self, memory: MemoryImage, parties: int) -> None:
        super().__init__(memory)
        self.barrier = threading.Barrier(parties)

    def open(self, put_blob: Descriptor) -> BinaryIO:
        if put_blob.digest != self.root_descriptor().digest:
            self.barrier.wait(60)
        return super().open(put_blob)


def test_prefetch_in_parallel(tmp_path: Path) -> None:
    source = BlockingSource(hello(["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x"]), parties=4)
    with cached_source(source, tmp_path) as cache:
        wait_until(lambda: len(source.opened) == len(source.memory.blobs))
        for each in (each for level in push_order(cache) for each in level):
            assert read_blob(cache, each, 1 << 20) == source.memory.blobs[str(each.digest)]
        assert list(tmp_path.iterdir()) == []  # the file has no name
    assert set(source.opened.values()) == {1}


def test_large_blobs_are_not_prefetched(
    source: CountingSource, cache: CachingSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "_MAX_PREFETCH_SIZE", 10)
    entries = Image(source.memory).index.manifests
    with ThreadPoolExecutor() as pool:
        cached._prefetch_image(Image(cache), entries, cache, pool)
    assert not source.opened


def test_opened_blob_is_not_prefetched(source: CountingSource, cache: CachingSource) -> None:
    blob = put_blob(source, b"read by somebody")
    with contextlib.closing(cache.open(blob)), ThreadPoolExecutor() as pool:
        cache.prefetch(blob, pool)
    assert source.opened[str(blob.digest)] == 1


def test_prefetch_ignores_broken_image(tmp_path: Path) -> None:
    source = CountingSource(hello())
    for digest in source.memory.blobs:
        source.memory.blobs[digest] = b"{"
    with cached_source(source, tmp_path) as cache, pytest.raises(MalformedImage):
        read_blob(cache, cache.root_descriptor(), 1 << 20)


class SourceUntilStopped(CountingSource):
    """Opens the root only, until the cache in front of it is stopped."""

    cache: CachingSource | None = None

    def open(self, put_blob: Descriptor) -> BinaryIO:
        stream = super().open(put_blob)
        if put_blob.digest != self.root_descriptor().digest:
            wait_until(lambda: self.cache is not None and self.cache.stopped)
        return stream


def test_interrupted_prefetch(tmp_path: Path) -> None:
    source = SourceUntilStopped(hello(TEN))

    def interrupt() -> None:
        with cached_source(source, tmp_path) as image:
            assert isinstance(image.source, CachingSource)
            source.cache = image.source
            wait_until(lambda: len(source.opened) > 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert len(source.opened) <= 1 + cached._PREFETCH_JOBS
