from __future__ import annotations

import io

import pytest

from buildkit_tasks.oci.layers.tar import TarEntry
from buildkit_tasks.oci.layers.tree_builder import read_windows
from buildkit_tasks.platforms.elf.isa_check import STREAM_MAGICS, STREAM_WINDOW_SIZE

MIB = 1 << 20


class Whole(io.BytesIO):
    """One file's data, read as an archive's entry is."""

    def __iter__(self) -> Whole:  # type: ignore[override]
        return self

    def __next__(self) -> TarEntry:  # type: ignore[override]
        raise StopIteration

    def peek(self, limit: int) -> bytes:
        return self.getvalue()[:limit]


# In the middle of a piece, over the border of two, and where the first piece after the front begins.
@pytest.mark.parametrize("place", [18 * MIB + 5, 19 * MIB - 3, 16 * MIB])
@pytest.mark.parametrize("magic", STREAM_MAGICS)
def test_of_a_large_program_both_ends_and_what_stands_at_a_magic_are_kept(place: int, magic: bytes) -> None:
    data = bytearray(30 * MIB + 123)
    data[place : place + len(magic)] = magic
    data[place - 16 : place - 8] = b"before-8"
    data[:4], data[-4:] = b"head", b"tail"
    view = read_windows(Whole(bytes(data)), len(data))
    assert view.size == len(data)
    assert view.read_at(0, 4) == b"head"
    assert view.read_at(len(data) - 4, 100) == b"tail"
    assert view.read_at(len(data) - 4 * MIB, 16) == bytes(16)
    assert view.read_at(place - 16, STREAM_WINDOW_SIZE) == bytes(
        data[place - 16 : place - 16 + STREAM_WINDOW_SIZE]
    )
    assert view.read_at(22 * MIB, 16) == b""
