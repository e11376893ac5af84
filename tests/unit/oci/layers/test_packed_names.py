from __future__ import annotations

import pytest

from buildkit_tasks.errors import LimitExceeded
from buildkit_tasks.oci.layers import packed_names as room
from buildkit_tasks.oci.layers.packed_names import PackedEntry, PackedNames


@pytest.fixture(params=["searched", "indexed"])
def names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PackedNames:
    """An empty list that is searched, or that makes an index at the first look-up."""
    if request.param == "indexed":
        monkeypatch.setattr(room, "_INDEX_THRESHOLD", -1)
    return PackedNames()


def test_a_name_is_found_with_its_mode_or_its_target(names: PackedNames) -> None:
    names.add("passwd", 0o100644)
    names.add("mtab", 0o777, "../proc/mounts")
    names.add("empty", 0o777, "")
    assert names.find("passwd") == PackedEntry(0o644)
    assert names.find("mtab") == PackedEntry(0o777, "../proc/mounts")
    assert names.find("empty") == PackedEntry(0o777, "")
    assert (list(names), len(names)) == (["passwd", "mtab", "empty"], 3)


def test_a_part_of_a_name_or_of_a_target_is_no_name(names: PackedNames) -> None:
    names.add("a644b", 0o644)
    names.add("link", 0o777, "sub/644x")
    names.add("x.y", 0o600)
    assert [names.find(part) for part in ("b", "a", "y", "x", "sub", "644x", "644a644b", "")] == [None] * 8


def test_the_latest_of_several_counts(names: PackedNames) -> None:
    names.add("x", 0o644)
    assert names.find("x") == PackedEntry(0o644)
    names.add("x", 0o777, "y")
    assert names.find("x") == PackedEntry(0o777, "y")
    names.add("x", 0o600)
    assert names.find("x") == PackedEntry(0o600)


def test_bytes_that_are_no_text_are_kept(names: PackedNames) -> None:
    raw = b"\xff\xfe".decode("utf-8", "surrogateescape")
    names.add(raw, 0o644, raw)
    assert names.find(raw) == PackedEntry(0o644, raw)
    assert list(names) == [raw]


def test_what_is_taken_out_is_gone_and_the_rest_is_as_it_was(names: PackedNames) -> None:
    for name in ("a", "ab", "b"):
        names.add(name, 0o644)
    names.add("ab", 0o777, "a")
    rest = names.exclude_names({"a", "b"})
    assert (list(rest), rest.find("ab"), rest.find("a")) == (["ab", "ab"], PackedEntry(0o777, "a"), None)
    assert len(names) == 4


def test_many_look_ups_in_a_large_folder_make_an_index_and_take_no_quadratic_time() -> None:
    names = PackedNames()
    for number in range(100_000):
        names.add(f"file-{number}", 0o644)
    searched = 0
    for number in range(100_000):
        assert names.find(f"file-{number}") is not None
        searched = max(searched, names._scanned_bytes)
    assert searched < room._INDEX_THRESHOLD + 3_000_000


def test_a_folder_too_large_for_an_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_INDEX_THRESHOLD", -1)
    monkeypatch.setattr(room, "_MAX_INDEXED_NAMES", 2)
    names = PackedNames()
    for name in "abc":
        names.add(name, 0o644)
    with pytest.raises(LimitExceeded, match="too many look-ups in a directory of 3 files"):
        names.find("a")
