"""Layers for property tests, of few names, so that their entries meet each other."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

from hypothesis import strategies as st

from tests.support.unpacking import Entry, directory, file, hard_link, symlink, tar_entry

__all__ = ["NAMES", "OUTSIDE", "images", "valid_images"]

Layers = list[list[Entry]]

NAMES = ("a", "b", "c", "l", "etc", "tmp")
OUTSIDE = "/OUT"  # stands for the path of a directory beside the root
_MODES = st.sampled_from([0o755, 0o644, 0, 0o7777, 0o500, 0o1777])
_DATA = st.sampled_from([b"", b"1", b"22"])


def images(names: Sequence[str] = NAMES) -> st.SearchStrategy[Layers]:
    """Return images of entries that may be malformed or lead out of the root."""
    parts = st.lists(_mostly(names, [".", "", "..", "hosts", "out", ".wh.a"]), min_size=1, max_size=4)
    paths = st.tuples(st.sampled_from(["", "", "", "./", "/"]), parts.map("/".join)).map("".join)
    prefixes = st.sampled_from(["", "", "/", "../", "../../..", "/../", f"{OUTSIDE}/", f"{OUTSIDE}/../"])
    targets = st.tuples(prefixes, parts.map("/".join)).map("".join)
    entries = st.one_of(
        st.builds(file, paths, _DATA, mode=_MODES),
        st.builds(file, paths, _DATA, mode=_MODES),
        st.builds(directory, paths, mode=_MODES),
        st.builds(symlink, paths, targets),
        st.builds(hard_link, paths, targets | paths),
        st.builds(tar_entry, paths, st.just(tarfile.FIFOTYPE), mode=_MODES),
        st.builds(tar_entry, paths, st.just(tarfile.CHRTYPE)),
        st.builds(file, _whiteouts(names)),
    )
    layers = st.lists(entries, max_size=8) | st.lists(_valid_entries(names) | entries, max_size=12)
    return st.lists(layers, min_size=1, max_size=4)


def valid_images(names: Sequence[str] = NAMES) -> st.SearchStrategy[Layers]:
    """Return images that are seldom malformed, so that long sequences of entries are unpacked to the end."""
    return st.lists(st.lists(_valid_entries(names), min_size=2, max_size=15), min_size=2, max_size=4)


def _valid_entries(names: Sequence[str]) -> st.SearchStrategy[Entry]:
    paths = st.lists(st.sampled_from(names), min_size=1, max_size=3).map("/".join)
    whiteouts = _whiteouts(names).filter(lambda path: not path.endswith(".wh."))
    links = st.builds(symlink, paths, st.sampled_from([*names, *(f"/{name}" for name in names)]))
    plain = st.one_of(st.builds(file, paths, _DATA, mode=_MODES), st.builds(directory, paths, mode=_MODES))
    return st.one_of(plain, plain, st.builds(file, whiteouts), links | st.builds(hard_link, paths, paths))


def _whiteouts(names: Sequence[str]) -> st.SearchStrategy[str]:
    targets = st.sampled_from([*names[:-1], ".wh..opq", ".wh..opq", ".wh.x", ""])
    return st.tuples(st.lists(st.sampled_from(names), max_size=2), targets).map(
        lambda each: "/".join([*each[0], f".wh.{each[1]}"])
    )


def _mostly(names: Sequence[str], others: Sequence[str]) -> st.SearchStrategy[str]:
    usual, odd = st.sampled_from(names), st.sampled_from(others)
    return st.integers(0, 11).flatmap(lambda number: odd if number == 0 else usual)
