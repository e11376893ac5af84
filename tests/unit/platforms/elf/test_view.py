from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile

DATA = bytes(range(200))


def test_read_past_end() -> None:
    view = WholeFile(b"abc")
    assert view.size == 3
    assert (view.read_at(1, 5), view.read_at(3, 1), view.read_at(1 << 70, 1 << 70)) == (b"bc", b"", b"")


def test_read_stops_at_gap() -> None:
    view = PartialFile(200, [(0, DATA[:50]), (100, DATA[100:150])])
    assert view.read_at(40, 20) == DATA[40:50]
    assert view.read_at(60, 10) == b""
    assert view.read_at(149, 10) == DATA[149:150]
    assert view.size == 200


def test_adjacent_and_overlapping_pieces() -> None:
    view = PartialFile(200, [(40, DATA[40:60]), (0, DATA[:45]), (60, DATA[60:80]), (10, DATA[10:12])])
    assert view.read_at(5, 100) == DATA[5:80]


def test_find_first_occurrence() -> None:
    view = PartialFile(200, [(100, DATA[100:150]), (10, b"x" + DATA[101:103])])
    assert view.find(DATA[101:103], 0, 200) == 11
    assert view.find(DATA[101:103], 12, 200) == 101
    assert view.find(DATA[101:103], 12, 102) == -1
    assert WholeFile(DATA).find(DATA[101:103], 0, 200) == 101


pieces = st.lists(st.tuples(st.integers(0, 199), st.integers(0, 60)), max_size=8)


@given(pieces, st.integers(0, 250), st.integers(0, 250))
def test_read_any_pieces(spans: list[tuple[int, int]], offset: int, size: int) -> None:
    view = PartialFile(200, [(start, DATA[start : start + length]) for start, length in spans])
    kept = {at for start, length in spans for at in range(start, min(start + length, 200))}
    expected = bytearray()
    while len(expected) < size and offset + len(expected) in kept:
        expected.append(DATA[offset + len(expected)])
    assert view.read_at(offset, size) == bytes(expected)
