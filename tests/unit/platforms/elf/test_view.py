from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile

DATA = bytes(range(200))


def test_bytes_past_the_end_are_none() -> None:
    view = WholeFile(b"abc")
    assert (view.size, view.read_at(1, 5), view.read_at(3, 1), view.read_at(1 << 70, 1 << 70)) == (
        3,
        b"bc",
        b"",
        b"",
    )


def test_what_lies_in_a_gap_is_not_given() -> None:
    view = PartialFile(200, [(0, DATA[:50]), (100, DATA[100:150])])
    assert view.read_at(40, 20) == DATA[40:50]
    assert view.read_at(60, 10) == b""
    assert view.read_at(149, 10) == DATA[149:150]
    assert view.size == 200


def test_pieces_that_touch_or_overlap_are_one() -> None:
    view = PartialFile(200, [(40, DATA[40:60]), (0, DATA[:45]), (60, DATA[60:80]), (10, DATA[10:12])])
    assert view.read_at(5, 100) == DATA[5:80]


def test_the_first_occurrence_in_any_piece_is_found() -> None:
    view = PartialFile(200, [(100, DATA[100:150]), (10, b"x" + DATA[101:103])])
    assert view.find(DATA[101:103], 0, 200) == 11
    assert view.find(DATA[101:103], 12, 200) == 101
    assert view.find(DATA[101:103], 12, 102) == -1
    assert WholeFile(DATA).find(DATA[101:103], 0, 200) == 101


pieces = st.lists(st.tuples(st.integers(0, 199), st.integers(0, 60)), max_size=8)


@given(pieces, st.integers(0, 250), st.integers(0, 250))
def test_windows_give_what_is_kept_up_to_the_first_gap(
    spans: list[tuple[int, int]], offset: int, size: int
) -> None:
    view = PartialFile(200, [(start, DATA[start : start + length]) for start, length in spans])
    kept = {at for start, length in spans for at in range(start, min(start + length, 200))}
    wanted = bytearray()
    while len(wanted) < size and offset + len(wanted) in kept:
        wanted.append(DATA[offset + len(wanted)])
    assert view.read_at(offset, size) == bytes(wanted)
