from __future__ import annotations

import pytest

from buildkit_tasks.errors import LimitExceeded
from buildkit_tasks.oci.layers import packed_names
from buildkit_tasks.oci.layers.packed_names import PackedEntry, PackedNames


@pytest.fixture(params=["scanned", "indexed"])
def names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PackedNames:
    """Return an empty list that scans its records, or one that builds an index at the first look-up."""
    if request.param == "indexed":
        monkeypatch.setattr(packed_names, "_INDEX_THRESHOLD", -1)
    return PackedNames()


def test_find(names: PackedNames) -> None:
    names.add("passwd", 0o100644)
    names.add("mtab", 0o777, "../proc/mounts")
    names.add("empty", 0o777, "")
    assert names.find("passwd") == PackedEntry(0o644)
    assert names.find("mtab") == PackedEntry(0o777, "../proc/mounts")
    assert names.find("empty") == PackedEntry(0o777, "")
    assert (list(names), len(names)) == (["passwd", "mtab", "empty"], 3)


def test_partial_name_is_not_found(names: PackedNames) -> None:
    names.add("a644b", 0o644)
    names.add("link", 0o777, "sub/644x")
    names.add("x.y", 0o600)
    assert [names.find(part) for part in ("b", "a", "y", "x", "sub", "644x", "644a644b", "")] == [None] * 8


def test_last_record_wins(names: PackedNames) -> None:
    names.add("x", 0o644)
    assert names.find("x") == PackedEntry(0o644)
    names.add("x", 0o777, "y")
    assert names.find("x") == PackedEntry(0o777, "y")
    names.add("x", 0o600)
    assert names.find("x") == PackedEntry(0o600)


def test_undecodable_name(names: PackedNames) -> None:
    raw = b"\xff\xfe".decode("utf-8", "surrogateescape")
    names.add(raw, 0o644, raw)
    assert names.find(raw) == PackedEntry(0o644, raw)
    assert list(names) == [raw]


def test_exclude_names(names: PackedNames) -> None:
    for name in ("a", "ab", "b"):
        names.add(name, 0o644)
    names.add("ab", 0o777, "a")
    remaining = names.exclude_names({"a", "b"})
    assert (list(remaining), remaining.find("ab"), remaining.find("a")) == (
        ["ab", "ab"],
        PackedEntry(0o777, "a"),
        None,
    )
    assert len(names) == 4


def test_many_look_ups_build_an_index() -> None:
    names = PackedNames()
    for number in range(100_000):
        names.add(f"file-{number}", 0o644)
    scanned_bytes = 0
    for number in range(100_000):
        assert names.find(f"file-{number}") is not None
        scanned_bytes = max(scanned_bytes, names._scanned_bytes)
    assert scanned_bytes < packed_names._INDEX_THRESHOLD + 3_000_000


def test_too_large_for_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_names, "_INDEX_THRESHOLD", -1)
    monkeypatch.setattr(packed_names, "_MAX_INDEXED_NAMES", 2)
    names = PackedNames()
    for name in "abc":
        names.add(name, 0o644)
    with pytest.raises(LimitExceeded, match="too many look-ups in a directory of 3 files"):
        names.find("a")


def test_remove(names: PackedNames) -> None:
    for name in ("a", "ab", "b", "a"):
        names.add(name, 0o644)
    names.remove("a")
    names.remove("c")
    assert (list(names), names.find("a"), names.find("ab")) == (["ab", "b"], None, PackedEntry(0o644))
    names.add("a", 0o777, "b")
    names.add("c", 0o600)
    assert (list(names), names.find("a"), names.find("c")) == (
        ["ab", "b", "a", "c"],
        PackedEntry(0o777, "b"),
        PackedEntry(0o600),
    )
    assert list(names.exclude_names({"b"})) == ["ab", "a", "c"]
