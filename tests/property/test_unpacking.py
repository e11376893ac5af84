"""Unpacked layers equal a simple model: layers are unpacked each by itself and merged, as overlayfs does."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import event, example, given, settings

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.support.layer_model import build_model
from tests.support.layer_strategies import OUTSIDE, images, valid_images
from tests.support.oci import single_platform_image
from tests.support.unpacking import (
    Entry,
    directory,
    file,
    hard_link,
    layer_tar,
    platform_descriptor,
    remove_path,
    symlink,
    walk_closed,
)

EXAMPLES = settings().max_examples


def list_nodes(root: Path) -> dict[str, tuple[object, ...]]:
    nodes: dict[str, tuple[object, ...]] = {}
    for path in walk_closed(root):
        name, path_stat = str(path.relative_to(root)), path.lstat()
        mode = stat.S_IMODE(path_stat.st_mode)
        if stat.S_ISLNK(path_stat.st_mode):
            nodes[name] = ("link", os.readlink(path))  # noqa: PTH115 - the target as written
        elif stat.S_ISDIR(path_stat.st_mode):
            nodes[name] = ("directory", mode)
        elif stat.S_ISFIFO(path_stat.st_mode):
            nodes[name] = ("fifo", mode)
        else:
            path.chmod(0o600)
            nodes[name] = ("file", path.read_bytes(), mode)
            path.chmod(mode)
    return nodes


def list_hard_links(root: Path) -> Counter[frozenset[str]]:
    names: dict[int, set[str]] = {}
    for path in walk_closed(root):
        if not path.is_symlink() and not path.is_dir():
            names.setdefault(path.stat().st_ino, set()).add(str(path.relative_to(root)))
    return Counter(map(frozenset, names.values()))


@contextmanager
def create_parent() -> Iterator[Path]:
    """Yield a directory for a root, with files beside it that must not change."""
    parent = Path(tempfile.mkdtemp(prefix="unpacking-"))
    for name in ("out/a", "out/b", "a", "etc"):
        (parent / name).mkdir(parents=True)
    for name in ("out/x", "out/a/x", "a/b", "etc/hosts"):
        (parent / name).write_bytes(b"")
    try:
        yield parent
    finally:
        remove_path(parent)


def stat_outside(parent: Path) -> dict[str, tuple[int, ...]]:
    """Return the stat of every path outside of the root."""
    stats: dict[str, tuple[int, ...]] = {}
    for path in parent.rglob("*"):
        name = path.relative_to(parent)
        if name.parts[0] != "root":
            path_stat = path.lstat()
            stats[str(name)] = (
                path_stat.st_mode, path_stat.st_ino, path_stat.st_nlink, path_stat.st_size, path_stat.st_uid,
                path_stat.st_mtime_ns, path_stat.st_ctime_ns,
            )  # fmt: skip
    return stats


def resolve_outside(info: tarfile.TarInfo, parent: Path) -> tarfile.TarInfo:
    """Replace the placeholder in a link target by the real path of the directory outside."""
    if info.linkname.startswith(OUTSIDE):
        info = tarfile.TarInfo.frombuf(info.tobuf(tarfile.GNU_FORMAT), "utf-8", "surrogateescape")
        info.linkname = info.linkname.replace(OUTSIDE, str(parent / "out"), 1)
    return info


def check_unpacking(layers: list[list[Entry]]) -> None:
    with create_parent() as parent:
        layers = [[(resolve_outside(info, parent), data) for info, data in entries] for entries in layers]
        expected, before = build_model(layers), stat_outside(parent)
        source = single_platform_image([layer_tar(*entries) for entries in layers])
        try:
            unpack(source, platform_descriptor(source), parent / "root")
        except MalformedImage:
            event("malformed")
            assert expected is None or expected.may_be_rejected
            assert not os.path.lexists(parent / "root")
        else:
            event("unpacked")
            assert expected is not None
            assert list_nodes(parent / "root") == expected.list_nodes()
            assert list_hard_links(parent / "root") == expected.list_hard_links()
        assert stat_outside(parent) == before


@settings(max_examples=3 * EXAMPLES)
@given(images())
@example([[symlink("l", OUTSIDE), file("l/x", b"1")]])
@example([[symlink("l", "../../out")], [file("l/x", b"1"), file("l/.wh..wh..opq")]])
@example([[symlink("l", f"{OUTSIDE}/x"), file("l", b"1")]])
@example([[symlink("l", f"{OUTSIDE}/x"), hard_link("h", "l/x")]])
@example([[symlink("l", "../out")], [file("l/.wh.x"), file(".wh.l")]])
@example([[file("a"), directory("etc", mode=0)]])
@example([[file("a/b", b"1")], [file("a/c"), file("a/.wh..wh..opq"), file("a/b")]])
@example([[file("a/b", b"1")], [file("a"), directory("a")]])
def test_unpacking_equals_model(layers: list[list[Entry]]) -> None:
    check_unpacking(layers)


@settings(max_examples=2 * EXAMPLES)
@given(valid_images())
def test_unpacked_whiteouts_equal_model(layers: list[list[Entry]]) -> None:
    check_unpacking(layers)
