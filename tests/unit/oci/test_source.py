from __future__ import annotations

import os

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.source import open_verified, read_blob
from tests.support.oci import MemoryImage, descriptor, flip


def test_read_blob() -> None:
    memory = MemoryImage()
    for data in (b"", b"x", os.urandom(1 << 20)):
        assert read_blob(memory, descriptor(memory.put(data, "x/y")), 1 << 20) == data


@pytest.mark.parametrize(
    ("stored", "cause"), [(b"datA", "holds other bytes"), (b"dat", "has 3 bytes"), (b"data+", "longer than")]
)
def test_wrong_bytes_are_rejected(stored: bytes, cause: str) -> None:
    memory = MemoryImage()
    entry = memory.put(b"data", "x/y")
    memory.blobs[entry["digest"]] = stored
    with pytest.raises(MalformedImage, match=rf"{entry['digest']}.*{cause}"):
        read_blob(memory, descriptor(entry), 100)


def test_too_large_blob_is_not_opened() -> None:
    memory = MemoryImage()
    entry = memory.put(b"data", "x/y")
    with pytest.raises(LimitExceeded, match="claims 4 bytes; at most 3"):
        read_blob(memory, descriptor(entry), 3)
    assert memory.opened == []


def test_stream_is_verified_at_its_end() -> None:
    memory = MemoryImage()
    entry = memory.put(bytes(1 << 20), "x/y")
    memory.blobs[entry["digest"]] = flip(bytes(1 << 20))
    stream = open_verified(memory, descriptor(entry))
    assert stream.read(1 << 19) == bytes(1 << 19)
    with pytest.raises(MalformedImage, match="holds other bytes"):
        stream.read()


def test_large_blob_is_hashed_in_order() -> None:
    memory = MemoryImage()
    data = os.urandom(13 << 20)  # more than three batches for the thread that hashes
    for _ in range(5):
        with open_verified(memory, descriptor(memory.put(data, "x/y"))) as stream:
            assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == data
