from __future__ import annotations

import errno
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.copy.graph import push_order
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.oci.source import open_verified, read_blob
from buildkit_tasks.oci.transports import cached as room
from buildkit_tasks.oci.transports.cached import CachingSource, cached_source
from tests.support.oci import LAYER_TAR, Memory, descriptor, hello


class Counted:
    """A source that counts how often each blob is asked for."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.asked: Counter[str] = Counter()

    def root_descriptor(self) -> Descriptor:
        return self.memory.root_descriptor()

    def open(self, what: Descriptor) -> BinaryIO:
        self.asked[str(what.digest)] += 1
        return self.memory.open(what)


@pytest.fixture
def source() -> Counted:
    return Counted(hello())


@pytest.fixture
def kept(source: Counted) -> Iterator[CachingSource]:
    """One that fetches nothing ahead."""
    with tempfile.TemporaryFile() as file:
        yield CachingSource(source, file.fileno())


def blob(source: Counted, data: bytes) -> Descriptor:
    return descriptor(source.memory.put(data, LAYER_TAR))


def test_complete_blob_is_fetched_once(source: Counted, kept: CachingSource) -> None:
    blobs = [blob(source, bytes([number]) * size) for number, size in enumerate((1, 5000, 300_000, 0))]
    for _ in range(3):
        for each in blobs:
            assert read_blob(kept, each, 1 << 20) == source.memory.blobs[str(each.digest)]
    assert set(source.asked.values()) == {1}
    assert kept.root_descriptor() == source.root_descriptor()


def test_partly_read_blob_is_fetched_again(source: Counted, kept: CachingSource) -> None:
    large = blob(source, bytes(1 << 20))
    with open_verified(kept, large) as stream:
        stream.read(10)
    assert read_blob(kept, large, 1 << 20) == bytes(1 << 20)
    assert source.asked[str(large.digest)] == 2


def test_wrong_bytes_are_found_on_each_read(source: Counted, kept: CachingSource) -> None:
    good = blob(source, b"good bytes")
    source.memory.blobs[str(good.digest)] = b"evil bytes"
    for _ in range(2):
        with pytest.raises(MalformedImage, match="holds other bytes"):
            read_blob(kept, good, 1 << 20)


@pytest.mark.parametrize("data", [b"too long a blob", b"short"])
def test_wrong_size_is_not_stored(source: Counted, kept: CachingSource, data: bytes) -> None:
    stated = blob(source, b"ten bytes.")
    source.memory.blobs[str(stated.digest)] = data
    other = blob(source, b"its neighbour")
    read_blob(kept, other, 1 << 20)
    for _ in range(2):
        with pytest.raises(MalformedImage):
            read_blob(kept, stated, 1 << 20)
    assert source.asked[str(stated.digest)] == 2
    assert read_blob(kept, other, 1 << 20) == b"its neighbour"


def test_full_cache(source: Counted, kept: CachingSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MAX_CACHE_SIZE", 1000)
    large, small = blob(source, bytes(1001)), blob(source, bytes(1000))
    for each in (large, small) * 2:
        read_blob(kept, each, 1 << 20)
    assert (source.asked[str(large.digest)], source.asked[str(small.digest)]) == (2, 1)


def test_full_disk(source: Counted, kept: CachingSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    each = blob(source, b"some bytes")
    assert [read_blob(kept, each, 1 << 20) for _ in range(2)] == [b"some bytes"] * 2
    assert source.asked[str(each.digest)] == 2


def test_concurrent_reads(source: Counted, kept: CachingSource) -> None:
    blobs = [blob(source, os.urandom(100_000)) for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: read_blob(kept, each, 1 << 20), blobs * 10))
    assert found == [source.memory.blobs[str(each.digest)] for each in blobs * 10]
    assert sum(source.asked.values()) < 100


class Slow(Counted):
    """One that takes a while to answer, and notes how many are waiting at once."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.waiting = self.most = 0

    def open(self, what: Descriptor) -> BinaryIO:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        time.sleep(0.02)
        self.waiting -= 1
        return super().open(what)


def test_prefetch_in_parallel(tmp_path: Path) -> None:
    source = Slow(hello(["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x"]))
    with cached_source(source, tmp_path) as kept:
        time.sleep(0.5)
        assert len(source.asked) == len(source.memory.blobs)
        for each in (each for level in push_order(kept) for each in level):
            assert read_blob(kept, each, 1 << 20) == source.memory.blobs[str(each.digest)]
        assert list(tmp_path.iterdir()) == []  # a file without a name is gone however we end
    assert source.most > 2
    assert set(source.asked.values()) == {1}


def test_large_blobs_are_not_prefetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MAX_PREFETCH_SIZE", 10)
    source = Counted(hello())
    with cached_source(source, tmp_path):
        time.sleep(0.1)
    assert sum(source.asked.values()) <= 1  # the index


def test_prefetch_ignores_broken_image(tmp_path: Path) -> None:
    source = Counted(hello())
    for digest in source.memory.blobs:
        source.memory.blobs[digest] = b"{"
    with cached_source(source, tmp_path) as kept, pytest.raises(MalformedImage):
        read_blob(kept, kept.root_descriptor(), 1 << 20)


def test_interrupted_prefetch(tmp_path: Path) -> None:
    source = Slow(hello(["linux/amd64", "linux/arm64"]))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), cached_source(source, tmp_path):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 5
