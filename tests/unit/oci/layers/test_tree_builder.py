from __future__ import annotations

import io

import pytest

from buildkit_tasks.oci.layers.tar import TarEntry
from buildkit_tasks.oci.layers.tree_builder import read_windows
from buildkit_tasks.platforms.elf.isa_check import STREAM_MAGICS, STREAM_WINDOW_SIZE

MIB = 1 << 20


class WholeEntry(io.BytesIO):
    """An EntryReader that is at the data of one file."""

    def __iter__(self) -> WholeEntry:  # type: ignore[override]
        return self

    def __next__(self) -> TarEntry:  # type: ignore[override]
        raise StopIteration

    def peek(self, limit: int) -> bytes:
        return self.getvalue()[:limit]


# In the middle of a chunk, across two chunks, and at the start of the first chunk after the front.
@pytest.mark.parametrize("position", [18 * MIB + 5, 19 * MIB - 3, 16 * MIB])
@pytest.mark.parametrize("magic", STREAM_MAGICS)
def test_windows_of_large_file(position: int, magic: bytes) -> None:
    data = bytearray(30 * MIB + 123)
    data[position : position + len(magic)] = magic
    data[position - 16 : position - 8] = b"before-8"
    data[:4], data[-4:] = b"head", b"tail"
    view = read_windows(WholeEntry(bytes(data)), len(data))
    assert view.size == len(data)
    assert view.read_at(0, 4) == b"head"
    assert view.read_at(len(data) - 4, 100) == b"tail"
    assert view.read_at(len(data) - 4 * MIB, 16) == bytes(16)
    assert view.read_at(position - 16, STREAM_WINDOW_SIZE) == bytes(
        data[position - 16 : position - 16 + STREAM_WINDOW_SIZE]
    )
    assert view.read_at(22 * MIB, 16) == b""
