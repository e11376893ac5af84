from __future__ import annotations

import ctypes
import errno
import gzip
import io
import os
import stat
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar import OwnerTarReader
from buildkit_tasks.oci.limits import Limits
from buildkit_tasks.run.sandbox import openat2
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.support.oci import (
    LAYER_TAR,
    Json,
    MemoryImage,
    add_platform,
    flip,
    make_tar,
    member,
    single_platform_image,
)
from tests.support.unpacking import (
    IS_ROOT,
    NOBODY,
    Entry,
    call_as_nobody,
    directory,
    file,
    hard_link,
    layer_tar,
    list_tree,
    only_root,
    open_fds,
    platform_descriptor,
    remove_path,
    symlink,
    tar_entry,
    unpack_error,
    unpack_layers,
)


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Entry types


def test_content_mode_and_time(tmp_path: Path) -> None:
    items = [
        directory("bin", mode=0o750, mtime=1_500_000_000),
        file("bin/busybox", b"program" * 1000, mode=0o711, mtime=1_600_000_000.5),
        symlink("bin/sh", "busybox", mtime=1_400_000_000),
        hard_link("bin/ls", "bin/busybox", mode=0o711),
        tar_entry("pipe", tarfile.FIFOTYPE, mode=0o640, mtime=1_300_000_000),
        tar_entry("data", tarfile.CONTTYPE, b"contiguous"),
    ]
    root = unpack_layers(tmp_path, items)
    assert (root / "bin/busybox").read_bytes() == b"program" * 1000
    assert (root / "bin/ls").samefile(root / "bin/busybox")
    assert (root / "bin/sh").readlink() == Path("busybox")
    assert (root / "data").read_bytes() == b"contiguous"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert [get_mode(root / name) for name in ("bin", "bin/busybox", "pipe", "")] == [
        0o750,
        0o711,
        0o640,
        0o755,
    ]
    times = [(root / name).lstat().st_mtime for name in ("bin", "bin/busybox", "bin/sh", "pipe")]
    assert times == [1_500_000_000, 1_600_000_000.5, 1_400_000_000, 1_300_000_000]


def test_umask_is_ignored(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        items = [
            directory("a", mode=0o777),
            file("a/b", mode=0o666),
            file("c/d"),
            tar_entry("p", tarfile.FIFOTYPE, mode=0o666),
        ]
        root = unpack_layers(tmp_path, items, WorkingDir="/w")
    finally:
        os.umask(before)
    names = ("", "a", "a/b", "c", "p", "w", "tmp", "proc", "etc", "etc/hosts")
    assert [oct(get_mode(root / name)) for name in names] == [
        "0o755", "0o777", "0o666", "0o755", "0o666", "0o755", "0o1777", "0o755", "0o755", "0o644",
    ]  # fmt: skip


def test_setuid_and_setgid_are_dropped(tmp_path: Path) -> None:
    items = [
        file("file", mode=0o6755),
        directory("dir", mode=0o7777),
        tar_entry("pipe", tarfile.FIFOTYPE, mode=0o6644),
        file("sticky", mode=0o1644),
    ]
    root = unpack_layers(tmp_path, items)
    names = ("file", "dir", "pipe", "sticky")
    assert [oct(get_mode(root / name)) for name in names] == ["0o755", "0o1777", "0o644", "0o644"]


def test_device_only_removes(tmp_path: Path) -> None:
    devices = [
        tar_entry("a", tarfile.CHRTYPE, devmajor=1),
        tar_entry("b", tarfile.BLKTYPE),
        tar_entry("c", tarfile.CHRTYPE),
    ]
    assert list_tree(unpack_layers(tmp_path, [file("a"), file("b/x"), file("d")], devices)) == {"d": ""}


@pytest.mark.parametrize("kind", [b"V", b"M", b"A", b"8"])
def test_unknown_entry_type(kind: bytes, tmp_path: Path) -> None:
    assert "unknown type" in unpack_error(tmp_path, [tar_entry("a", kind)])


def test_root_entry_is_ignored(tmp_path: Path) -> None:
    names = (".", "./", "/", "./.", "")
    assert get_mode(unpack_layers(tmp_path, [directory(name, mode=0) for name in names])) == 0o755


def test_names_are_normalized(tmp_path: Path) -> None:
    items = [directory("/a/./b/."), file("./a//b///x"), directory("//c//"), file("c/./y")]
    assert list_tree(unpack_layers(tmp_path, items)) == {
        "a": "/",
        "a/b": "/",
        "a/b/x": "",
        "c": "/",
        "c/y": "",
    }


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name, target = b"a\xff\xfe".decode("utf-8", "surrogateescape"), b"\xe9".decode("utf-8", "surrogateescape")
    data = make_tar({}, [file(name)[0], symlink("l", target)[0]], tarfile.GNU_FORMAT)
    source = single_platform_image([data])
    unpack(source, platform_descriptor(source), tmp_path / "root")
    assert b"a\xff\xfe" in os.listdir(os.fsencode(tmp_path / "root"))  # noqa: PTH208 - bytes
    assert os.readlink(os.fsencode(tmp_path / "root/l")) == b"\xe9"  # noqa: PTH115 - bytes


def test_equal_symlinks_share_an_inode(tmp_path: Path) -> None:
    links = [symlink(f"bin/{name}", "busybox") for name in "abcd"]
    again = [symlink("bin/a", "other"), file("bin/b", b"file"), symlink("bin/e", "busybox")]
    root = unpack_layers(tmp_path, [*links, *again], [symlink("bin/c", "third")])
    assert list_tree(root / "bin") == {
        "a": "-> other", "b": "file", "c": "-> third", "d": "-> busybox", "e": "-> busybox",
    }  # fmt: skip
    assert (root / "bin/d").lstat().st_nlink == 1


def test_equal_symlink_elsewhere(tmp_path: Path) -> None:
    items = [symlink("one/a", "t"), file("two/a", b"file"), symlink("two/b", "t"), symlink("one/c", "t")]
    root = unpack_layers(tmp_path, items, [symlink("two/d", "t")])
    assert list_tree(root) == {
        "one": "/", "one/a": "-> t", "one/c": "-> t",
        "two": "/", "two/a": "file", "two/b": "-> t", "two/d": "-> t",
    }  # fmt: skip


def test_different_symlinks(tmp_path: Path) -> None:
    links = [
        symlink("a", "t"),
        symlink("b", "t", mtime=5),
        symlink("c", "u"),
        symlink("d", "t"),
        symlink("e/f", "t"),
    ]
    root = unpack_layers(tmp_path, [*links, symlink("g", "t", uid=5)])
    numbers = [(root / name).lstat().st_ino for name in ("a", "b", "c", "e/f", "g")]
    assert len(set(numbers)) == 5
    assert (root / "d").lstat().st_ino == numbers[0]
    assert (root / "b").lstat().st_mtime == 5


def test_many_different_symlinks(tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [symlink(f"l{number}", f"t{number // 2}") for number in range(300)])
    assert {(root / f"l{number}").readlink() == Path(f"t{number // 2}") for number in range(300)} == {True}


def test_symlinks_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_link(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", refuse_link)
    root = unpack_layers(tmp_path, [symlink("a", "t"), symlink("b", "t"), symlink("b", "t")])
    assert list_tree(root) == {"a": "-> t", "b": "-> t"}


# Parents


def test_missing_parents_are_created(tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("a/b/c", b"1")])
    assert [get_mode(root / name) for name in ("a", "a/b")] == [0o755, 0o755]


def test_symlinks_resolve_in_root(tmp_path: Path) -> None:
    items = [
        directory("real/deep"),
        symlink("absolute", "/real"),
        symlink("real/up", "../../../real/deep"),
        symlink("dots", "real/deep/../../../../../real"),
        file("absolute/x", b"1"),
        file("real/up/y", b"2"),
        file("dots/z", b"3"),
    ]
    root = unpack_layers(tmp_path, items)
    assert [(root / "real" / name).read_text() for name in ("x", "deep/y", "z")] == ["1", "2", "3"]


def test_dangling_symlink_as_parent(tmp_path: Path) -> None:
    items = [
        symlink("var/run", "/run/../run/here"),
        file("var/run/sub/x", b"1"),
        symlink("a/l", "../../../b//./c"),
        file("a/l/y", b"2"),
    ]
    root = unpack_layers(tmp_path, items)
    assert (root / "run/here/sub/x").read_text() == "1"
    assert (root / "b/c/y").read_text() == "2"


@pytest.mark.parametrize(
    "items",
    [
        [symlink("a", "b"), symlink("b", "a"), file("a/x")],
        [symlink("a", "a"), file("a/x")],
        [symlink("a", "a/b/c"), file("a/x")],
        [symlink("l0", "/gone"), *(symlink(f"l{n + 1}", f"l{n}") for n in range(50)), file("l50/x")],
        [symlink("loop", "loop"), symlink("l", "gone/../loop"), file("l/x")],
    ],
    ids=["pair", "self", "deeper self", "chain", "after a missing directory"],
)
@pytest.mark.timeout(60)
def test_symlink_loop(items: list[Entry], tmp_path: Path) -> None:
    assert "symbolic links" in unpack_error(tmp_path, items)


@pytest.mark.parametrize(
    "items",
    [[file("a"), file("a/x")], [file("a"), directory("a/b/c")], [file("a"), symlink("l", "a"), file("l/x")]],
)
def test_entry_below_a_file(items: list[Entry], tmp_path: Path) -> None:
    assert "Not a directory" in unpack_error(tmp_path, items)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "a/..", "..", "a/../x", "/../x", ".wh.a/../x", "../.wh.x"]
)
def test_path_traversal(name: str, tmp_path: Path) -> None:
    assert "leads out of its directory" in unpack_error(tmp_path, [file(name)])


def test_parent_is_replaced(tmp_path: Path) -> None:
    items = [
        directory("one"), directory("two"), symlink("l", "one"), file("l/a"), symlink("l", "two"),
        file("l/b"),
        directory("f"), file("f/a"), symlink("f", "one"), file("f/c"), directory("f"), file("f/d"),
    ]  # fmt: skip
    assert list_tree(unpack_layers(tmp_path, items)) == {
        "one": "/", "one/a": "", "one/c": "", "two": "/", "two/b": "", "l": "-> two", "f": "/", "f/d": "",
    }  # fmt: skip


def test_entry_replaces_its_parent_link(tmp_path: Path) -> None:
    items = [directory("p"), symlink("p/l", "."), file("p/l/l", b"1")]
    assert list_tree(unpack_layers(tmp_path, items)) == {"p": "/", "p/l": "1"}


def test_more_parents_than_cached(tmp_path: Path) -> None:
    names = [f"{parent}/{number}" for number in range(5) for parent in "abcdefghijklmnopqrstuvwxyz"]
    root = unpack_layers(tmp_path, [file(name) for name in names])
    assert set(names) <= set(list_tree(root))


# Replacement


@pytest.mark.parametrize("split", [False, True], ids=["same layer", "upper layer"])
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([file("x", b"1")], directory("x"), {"x": "/"}),
        ([file("x/a/b"), symlink("x/l", "/etc")], file("x", b"2"), {"x": "2"}),
        ([file("x/a/b")], symlink("x", "y"), {"x": "-> y"}),
        ([file("x/a")], directory("x", mode=0o700), {"x": "/", "x/a": ""}),
        ([file("y/a", b"1"), symlink("x", "y")], directory("x"), {"x": "/", "y": "/", "y/a": "1"}),
        ([file("y", b"1"), symlink("x", "y")], file("x", b"2"), {"x": "2", "y": "1"}),
        ([file("y", b"1"), hard_link("x", "y")], file("x", b"2"), {"x": "2", "y": "1"}),
        ([file("x/a")], tar_entry("x", tarfile.FIFOTYPE), {"x": "?"}),
        ([tar_entry("x", tarfile.FIFOTYPE)], file("x", b"2"), {"x": "2"}),
    ],
)
def test_entry_replaces_existing(
    before: list[Entry], after: Entry, expected: dict[str, str], split: bool, tmp_path: Path
) -> None:
    layers = [before, [after]] if split else [[*before, after]]
    root = unpack_layers(tmp_path, *layers)
    assert list_tree(root) == expected
    if expected.get("x") == "/":
        assert get_mode(root / "x") == after[0].mode


@pytest.mark.parametrize("before", [file("x/z"), hard_link("x", "y"), file("x"), symlink("x", "y")])
def test_hard_link_replaces_existing(before: Entry, tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("y", b"1"), before, hard_link("x", "y")])
    assert list_tree(root) == {"x": "1", "y": "1"}


def test_hard_link_sets_mode(tmp_path: Path) -> None:
    entries = [file("f", mode=0o644), hard_link("h", "f"), symlink("l", "f"), hard_link("m", "l")]
    root = unpack_layers(tmp_path, entries)
    assert get_mode(root / "f") == hard_link("h", "f")[0].mode == 0o755
    assert (root / "m").is_symlink()


def test_inode_reuse_keeps_no_mode(tmp_path: Path) -> None:
    items = [directory("x", mode=0o500), file("x"), *(file(f"{name}/f") for name in "abcdefgh")]
    root = unpack_layers(tmp_path, items)
    assert {get_mode(root / name) for name in "abcdefgh"} == {0o755}


def test_hard_links(tmp_path: Path) -> None:
    entries = [
        file("usr/bin/x", b"1"),
        symlink("bin", "usr/bin"),
        symlink("usr/bin/s", "x"),
        symlink("n", "/no"),
        hard_link("b", "bin"),
        hard_link("m", "n"),
        hard_link("y", "bin/x"),
        hard_link("z", "/usr/../../bin/x"),
        hard_link("t", "usr/bin/s"),
        hard_link("./u", "./bin/./x"),
    ]
    root = unpack_layers(tmp_path, entries)
    assert all((root / name).samefile(root / "usr/bin/x") for name in "yzu")
    assert (root / "t").is_symlink()
    assert [str((root / name).readlink()) for name in "tbm"] == ["x", "usr/bin", "/no"]


@pytest.mark.parametrize(
    "target",
    ["gone", "a", "a/", ".", "..", "", "/", "a/gone/x", "f/x", "../../etc/passwd", "x", "l/lower", "lower"],
)
def test_hard_link_target_is_missing(target: str, tmp_path: Path) -> None:
    lower = [file("lower"), file("x"), symlink("l", ".")]
    entries = [directory("a"), file("f"), hard_link("x", target)]
    assert "is not a file of the same layer" in unpack_error(tmp_path, lower, entries)


def test_hard_link_into_replaced_directory(tmp_path: Path) -> None:
    assert "is not a file of the same layer" in unpack_error(tmp_path, [file("a/b"), hard_link("a", "a/b")])


# Whiteouts


def test_whiteout(tmp_path: Path) -> None:
    below = [file("a"), symlink("b", "keep"), file("c/d/e"), symlink("c/l", "../keep"), file("keep/f")]
    above = [file(f".wh.{name}") for name in ("a", "b", "c", "gone")]
    assert list_tree(unpack_layers(tmp_path, below, above)) == {"keep": "/", "keep/f": ""}


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (["x/old", "y/old"], ["x/new", "x/.wh..wh..opq"], ["x/new", "y/old"]),
        (["x/s/old", "x/t/old"], ["x/s/new", "x/.wh..wh..opq"], ["x/s/new"]),
        (["x/s/old", "x/t/old"], ["x/s/new", "x/.wh.t", "x/s/.wh.old"], ["x/s/new"]),
        (["x/old"], ["x/.wh.old", "x/.wh..wh..opq"], []),
        (["x/old"], ["y/.wh.old", "y/.wh..wh..opq"], ["x/old"]),
        (["x"], ["x/.wh.a", "x/.wh..wh..opq"], []),
        (["x/a"], ["l/.wh.a"], ["x/a"]),
    ],
)
def test_whiteout_spares_own_layer(
    below: list[str], above: list[str], expected: list[str], is_reversed: bool, tmp_path: Path
) -> None:
    upper = above[::-1] if is_reversed else above
    lower = [symlink("l", "x"), *(file(name) for name in below)]
    root = unpack_layers(tmp_path, lower, [file(name) for name in upper])
    names = [name for name, data in list_tree(root).items() if data != "/" and name != "l"]
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize(
    "above",
    [
        [file("x"), file(".wh.x")],
        [file(".wh.x"), file(".wh.x")],
        [file("x/new"), file(".wh.x")],
        [file(".wh.x"), file("x/new")],
        [directory("x"), file(".wh.x")],
        [file(".wh.x"), directory("x")],
        [file("x/s/new"), file(".wh.x")],
        [file("x/.wh.new"), file(".wh.x")],
        [file("x/.wh..wh..opq"), file(".wh.x")],
        [file("x"), directory("x")],
        [symlink("x", "s"), directory("x")],
        [symlink("l", "x"), file("l/new"), file(".wh.x")],
    ],
)
def test_entry_and_its_whiteout(above: list[Entry], tmp_path: Path) -> None:
    error = unpack_error(tmp_path, [file("x/old"), file("x/s/old")], above)
    assert "has an entry 'x', or one below it, and a whiteout of it" in error


def test_whiteout_of_own_entry_in_lowest_layer(tmp_path: Path) -> None:
    names = ["x", "d/e", "y", ".wh.x", ".wh.d", ".wh.y", ".wh.y", "y", ".wh.z"]
    assert list_tree(unpack_layers(tmp_path, [file(name) for name in names])) == {"y": ""}


def test_file_replaces_whiteout(tmp_path: Path) -> None:
    above = [file(".wh.x"), file("x", b"1"), file(".wh.l"), symlink("l", "y"), file(".wh.new"), file("new")]
    root = unpack_layers(tmp_path, [file("x/old"), symlink("l", "x")], above)
    assert list_tree(root) == {"x": "1", "l": "-> y", "new": ""}


def test_opaque_whiteout_keeps_own_directory(tmp_path: Path) -> None:
    above = [directory("x", mode=0o711), directory("x/s", mode=0o700), file("x/.wh..wh..opq")]
    root = unpack_layers(tmp_path, [file("x/s/old"), file("x/t/old")], above)
    assert list_tree(root) == {"x": "/", "x/s": "/"}
    assert [get_mode(root / "x"), get_mode(root / "x/s")] == [0o711, 0o700]


def test_opaque_whiteout_keeps_parent_of_device(tmp_path: Path) -> None:
    above = [tar_entry("x/s/null", tarfile.CHRTYPE), file("x/.wh..wh..opq")]
    root = unpack_layers(tmp_path, [file("x/s/old"), file("x/old"), file("y")], above)
    assert list_tree(root) == {"x": "/", "x/s": "/", "y": ""}


def test_opaque_whiteout_of_root(tmp_path: Path) -> None:
    opaque = [file(".wh..wh..opq"), file("y")]
    assert list_tree(unpack_layers(tmp_path, opaque)) == {"y": ""}
    remove_path(tmp_path / "root")
    assert "opaque whiteout of the root" in unpack_error(tmp_path, [file("x")], opaque)


@pytest.mark.parametrize("names", [["x/y/z", "x/.wh..wh..opq"], ["x/.wh..wh..opq"] * 2])
def test_late_opaque_whiteout_in_lowest_layer(names: list[str], tmp_path: Path) -> None:
    layer = [file(name) for name in names]
    assert "opaque whiteout after directories" in unpack_error(tmp_path, layer)
    unpack_layers(tmp_path, [file("y")], layer)


def test_whiteout_in_lowest_layer(tmp_path: Path) -> None:
    items = [file("x"), file(".wh.y"), file("y/z"), file("y/.wh..wh..opq")]
    assert "an entry 'y'" in unpack_error(tmp_path, items)
    assert list_tree(unpack_layers(tmp_path, [*items[:1], *items[2:]])) == {"x": "", "y": "/", "y/z": ""}


def test_whiteout_in_third_layer(tmp_path: Path) -> None:
    layers = [[file("x/a")], [file("x/b"), file("y")], [file("x/.wh..wh..opq"), file("x/c"), file(".wh.y")]]
    assert list_tree(unpack_layers(tmp_path, *layers)) == {"x": "/", "x/c": ""}


def test_whiteout_through_symlink(tmp_path: Path) -> None:
    below = [file("one/x"), file("two/x"), symlink("l", "one"), symlink("m", "two")]
    above = [symlink("n", "two"), file("n/y"), file("n/.wh..wh..opq"), file("l/.wh.x")]
    assert list_tree(unpack_layers(tmp_path, below, above)) == {
        "one": "/", "one/x": "", "l": "/", "two": "/", "two/y": "", "m": "-> two", "n": "-> two",
    }  # fmt: skip


@pytest.mark.parametrize("lower", [symlink("x", "/one"), symlink("x", "/gone"), symlink("x", "x"), file("x")])
@pytest.mark.parametrize("path", ["x/app", "x/s/app", "l/app"])
def test_directory_replaces_lower_file(path: str, lower: Entry, tmp_path: Path) -> None:
    above = [symlink("l", "x"), file(path, b"new")]
    root = unpack_layers(tmp_path, [file("one/app", b"old"), lower], above)
    assert not (root / "x").is_symlink()
    assert (root / path).read_bytes() == b"new"
    assert (root / "one/app").read_bytes() == b"old"


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_whiteout_of_any_entry_type(kind: bytes, tmp_path: Path) -> None:
    assert list_tree(unpack_layers(tmp_path, [file("x")], [tar_entry(".wh.x", kind, link="y")])) == {}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh."])
def test_whiteout_without_name(name: str, tmp_path: Path) -> None:
    assert "names nothing to hide" in unpack_error(tmp_path, [file("a/x")], [file(name)])


def test_aufs_metadata(tmp_path: Path) -> None:
    entries = [directory(".wh..wh.plnk"), file("a/.wh..wh.orph/y"), file(".wh..wh.aufs")]
    assert list_tree(unpack_layers(tmp_path, [file("x")], entries)) == {
        "x": "",
        "a": "/",
        "a/.wh..wh.orph": "/",
        "a/.wh..wh.orph/y": "",
    }


def test_repeated_whiteouts_scan_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[object] = []
    scandir = os.scandir

    def record(directory_fd: int) -> object:
        scanned.append(directory_fd)
        return scandir(directory_fd)

    monkeypatch.setattr(os, "scandir", record)
    below = [file(f"x/s{number}/old") for number in range(20)]
    above = [file(f"x/s{number}/new") for number in range(20)]
    opaque_names = [f"x/s{number}/.wh..wh..opq" for number in range(20)]
    opaque = [file(name) for _ in range(10) for name in ("x/.wh..wh..opq", *opaque_names)]
    new = [file(f"n{number}/{name}") for number in range(30) for name in ("a", ".wh..wh..opq")]
    root = unpack_layers(tmp_path, below, [*above, *opaque, *new])
    assert len(scanned) < 90  # once to hide and once to set modes; new directories only for their modes
    assert len(list_tree(root)) == 41 + 60


# Directories and files that a container needs


def test_required_directories_are_created(tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("x")], WorkingDir="/srv/app")
    assert [oct(get_mode(root / name)) for name in ("proc", "sys", "dev", "tmp", "srv/app")] == [
        "0o755", "0o755", "0o755", "0o1777", "0o755",
    ]  # fmt: skip
    assert (root / "etc/hosts").read_text() == "127.0.0.1\tlocalhost\n::1\tlocalhost\n"


def test_existing_directories_are_kept(tmp_path: Path) -> None:
    items = [directory("tmp", mode=0o700), file("etc/hosts", b"mine", mode=0o600), directory("w", mode=0o711)]
    root = unpack_layers(tmp_path, items, WorkingDir="w")
    assert (get_mode(root / "tmp"), get_mode(root / "w"), get_mode(root / "etc/hosts")) == (
        0o700,
        0o711,
        0o600,
    )
    assert (root / "etc/hosts").read_text() == "mine"


def test_empty_hosts_is_replaced(tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("empty"), hard_link("etc/hosts", "empty")])
    assert (root / "etc/hosts").stat().st_size
    assert (root / "empty").read_bytes() == b""


@pytest.mark.parametrize("link", ["/etc/elsewhere", "../../../../gone", "/empty"])
def test_hosts_is_a_symlink(link: str, tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("empty"), symlink("etc/hosts", link)])
    assert (root / "etc/hosts").readlink() == Path(link)
    assert list_tree(root) == {"empty": ""}


def test_hosts_is_a_fifo(tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [tar_entry("etc/hosts", tarfile.FIFOTYPE)])
    assert stat.S_ISFIFO((root / "etc/hosts").stat().st_mode)


@pytest.mark.parametrize("etc", [file("etc", b"x"), symlink("etc", "etc"), symlink("etc", "file")])
def test_etc_is_not_a_directory(etc: Entry, tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("file", b"1"), etc])
    assert not (root / "etc").is_dir()


def test_etc_is_a_symlink(tmp_path: Path) -> None:
    assert (unpack_layers(tmp_path, [symlink("etc", "/real/etc")]) / "real/etc/hosts").is_file()


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "tmp"])
def test_mount_point_is_a_symlink(name: str, tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [file("etc/x"), symlink(name, "etc")])
    assert stat.S_ISDIR((root / name).lstat().st_mode)
    (root / name).rmdir()


@pytest.mark.parametrize("working_dir", ["/a/b", "a/b", "/l/../a/b", "//a/./b/", "/../../a/b", "/l/b"])
def test_working_dir_is_created(working_dir: str, tmp_path: Path) -> None:
    root = unpack_layers(tmp_path, [symlink("l", "/a")], WorkingDir=working_dir)
    assert (root / "a/b").is_dir() or working_dir.startswith("/l/..")
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


@pytest.mark.parametrize(
    "working_dir", ["/f/x", "/f", "/loop/x", f"/{'n' * 256}", "/a" * 2500, "/a\0b", "\0"]
)
def test_invalid_working_dir(working_dir: str, tmp_path: Path) -> None:
    assert "the working directory" in unpack_error(
        tmp_path, [file("f"), symlink("loop", "loop")], WorkingDir=working_dir
    )


# Names and depth


@pytest.mark.parametrize(
    "name", ["n" * 256, "a/" + "n" * 256, "n" * 256 + "/a", "ü" * 128, "a/" * 2047 + "bb"]
)
def test_name_is_too_long(name: str, tmp_path: Path) -> None:
    message = unpack_error(tmp_path, [file(name)])
    assert "path longer than Linux allows" in message or "File name too long" in message


def test_longest_names(tmp_path: Path) -> None:
    names = ["n" * 255, "ü" * 127, "a/" * 2047 + "b"]
    remove_path(unpack_layers(tmp_path, [*map(file, names), symlink("l", "t" * 4095)]))


@pytest.mark.parametrize("target", ["", "t" * 4096])
def test_invalid_symlink_target(target: str, tmp_path: Path) -> None:
    unpack_error(tmp_path, [symlink("l", target)])


@pytest.mark.parametrize("key", ["path", "linkpath"])
def test_nul_in_name(key: str, tmp_path: Path) -> None:
    info, _ = symlink("l", "t")
    info.pax_headers = {key: "a\0b"}
    assert "a NUL" in unpack_error(tmp_path, [(info, b"")])


@pytest.fixture
def folder_of_deep_tree(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder whose root is removed afterwards: pytest fails to remove trees that are as deep."""
    yield tmp_path
    if (tmp_path / "root").exists():
        remove_path(tmp_path / "root")


def test_tree_deeper_than_path_max(folder_of_deep_tree: Path) -> None:
    deep = "d/" * 1000
    items = [
        directory(deep),
        symlink("l1", deep),
        directory(f"l1/{deep}"),
        symlink("l2", f"l1/{deep}"),
        file(f"l2/{deep}x"),
    ]
    changes = [*items[1:4:2], file(f"l2/{deep}.wh.x"), file(f"l2/{deep}y"), file("l2/.wh..wh..opq")]
    root = unpack_layers(folder_of_deep_tree, items, changes, [file(".wh.d"), file("z")])
    assert list_tree(root) == {"l1": f"-> {deep[:-1]}", "l2": f"-> l1/{deep[:-1]}", "z": ""}
    remove_path(root)
    unpack_layers(folder_of_deep_tree, items)
    assert len(open_fds()) < 100
    remove_path(root)
    unpack_error(folder_of_deep_tree, items, [file("../x")])


# Owners


@only_root
def test_owners_with_id_offset(tmp_path: Path) -> None:
    below = [
        directory("d", uid=1, gid=2),
        file("d/f", b"x", uid=1000, gid=65535),
        symlink("s", "t", uid=3, gid=4),
    ]
    above = [
        tar_entry("p", tarfile.FIFOTYPE, uid=5, gid=6), file("big", uid=65536, gid=1 << 20),
        directory("d", uid=7, gid=8),
        file("made/f"), hard_link("made/h", "made/f", uid=9, gid=10), symlink("s2", "t", uid=3, gid=4),
    ]  # fmt: skip
    source = single_platform_image([layer_tar(*below), layer_tar(*above)], WorkingDir="/w")
    root = tmp_path / "root"
    unpack(source, platform_descriptor(source), root, id_offset=100_000)
    owners = {
        str(path.relative_to(root)): (path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")
    }
    base = (100_000, 100_000)
    assert owners == {
        **dict.fromkeys(["dev", "proc", "sys", "tmp", "etc", "etc/hosts", "w", "made"], base),
        **dict.fromkeys(["made/f", "made/h"], (100_009, 100_010)),
        "d": (100_007, 100_008), "d/f": (101_000, 165_535),
        "s": (100_003, 100_004), "s2": (100_003, 100_004), "p": (100_005, 100_006), "big": (165_534, 165_534),
    }  # fmt: skip
    assert (root.stat().st_uid, root.stat().st_gid) == base


@only_root
def test_owners_without_id_offset(tmp_path: Path) -> None:
    root = unpack_layers(
        tmp_path, [directory("d", uid=1), file("d/f", uid=1000, gid=5), symlink("s", "t", uid=3)]
    )
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")} == {(0, 0)}


def test_unprivileged_unpack(nobody_dir: Path) -> None:
    below = [
        directory("a", mode=0),
        file("a/x", b"1", mode=0),
        directory("a/b", mode=0o555),
        file("a/b/y", b"2"),
    ]
    above = [file("a/z", b"3"), directory("c", mode=0o111), file("c/x"), file("a/b/.wh.y"), file("c/d/e")]
    root = call_as_nobody(lambda: unpack_layers(nobody_dir, below, above))
    assert get_mode(root / "a") == 0
    (root / "a").chmod(0o700)  # an ordinary user could not look into it
    assert [oct(get_mode(root / name)) for name in ("a/x", "a/b", "c", "c/d")] == [
        "0o0", "0o555", "0o111", "0o755",
    ]  # fmt: skip
    if IS_ROOT:
        assert sorted(name for name in list_tree(root)) == [
            "a",
            "a/b",
            "a/x",
            "a/z",
            "c",
            "c/d",
            "c/d/e",
            "c/x",
        ]
        assert {path.lstat().st_uid for path in root.rglob("*")} == {NOBODY}


def test_unprivileged_removal(nobody_dir: Path) -> None:
    canary = nobody_dir / "canary"
    canary.mkdir()
    (canary / "file").write_text("alive")
    canary.chmod(0o755)
    items = [
        directory("a", mode=0), directory("a/b", mode=0), file("a/b/x", mode=0), directory("c", mode=0o444),
        file("c/d/y"), symlink("out", str(canary)), symlink("a/out", "../../canary"),
        directory("e", mode=0o300),
    ]  # fmt: skip

    def unpack_and_remove() -> None:
        remove_path(unpack_layers(nobody_dir, items))

    call_as_nobody(unpack_and_remove)
    assert [path.name for path in nobody_dir.iterdir()] == ["canary"]
    assert (canary / "file").read_text() == "alive"
    assert get_mode(canary) == 0o755


def test_unusable_destination(tmp_path: Path) -> None:
    source = single_platform_image([layer_tar(file("x"))])
    with pytest.raises(EmulatorError, match="cannot be unpacked into") as excinfo:
        unpack(source, platform_descriptor(source), tmp_path / "gone" / "root")
    assert excinfo.value.exit_code == 3
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mine").touch()
    with pytest.raises(EmulatorError, match="File exists"):
        unpack(source, platform_descriptor(source), tmp_path / "root")
    assert (tmp_path / "root/mine").exists()


# Checks and limits


def test_digests_sizes_and_diff_ids(tmp_path: Path) -> None:
    data = layer_tar(file("x", b"1" * 5000))
    memory = MemoryImage()

    def unpack_message(entry: Json) -> str:
        memory.set_index([entry])
        with pytest.raises(MalformedImage) as excinfo:
            unpack(memory, platform_descriptor(memory), tmp_path / "root")
        assert list(tmp_path.iterdir()) == []
        return excinfo.value.message

    other = f"sha256:{'0' * 64}"
    entry = add_platform(memory, "linux/amd64", [data], diff_ids=[other])
    assert f"the config states {other}" in unpack_message(entry)
    assert "1 layers, the config 2 diff_ids" in unpack_message(
        add_platform(memory, "linux/amd64", [data], diff_ids=[other] * 2)
    )
    entry = add_platform(memory, "linux/amd64", [data])
    digest, blob = next((name, data) for name, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))
    memory.blobs[digest] = flip(blob, -30)
    assert digest in unpack_message(entry)
    memory.blobs[digest] = blob + b"more"
    assert f"{digest} is longer" in unpack_message(entry)
    memory.blobs[digest] = gzip.compress(layer_tar(file("../x")))
    assert "holds other bytes" in unpack_message(entry) or "are stated" in unpack_message(entry)


def test_malformed_layer_is_named(tmp_path: Path) -> None:
    memory = MemoryImage()
    entry = add_platform(memory, "linux/amd64", [layer_tar(file("x")), layer_tar(file("../x"))])
    memory.set_index([entry])
    digest = next(
        name for name, data in memory.blobs.items() if data == gzip.compress(layer_tar(file("../x")), mtime=0)
    )
    with pytest.raises(MalformedImage, match=f"^layer {digest}: "):
        unpack(memory, platform_descriptor(memory), tmp_path / "root")


def test_limits_of_files_and_directories(tmp_path: Path) -> None:
    many = [[file(f"{number}-{index}") for index in range(10)] for number in range(4)]
    assert unpack_layers(tmp_path, *many, limits=Limits(entries=45))
    for layers, limits, cause in (
        (many, Limits(entries=39), "too many files"),
        ([[file("a/" * 50 + "x")]], Limits(entries=40), "too many files"),
        ([[file("a/" * 50 + "x")]], Limits(nodes=40), "too many directories"),
        ([[directory(f"{index}") for index in range(50)]], Limits(nodes=49), "too many directories"),
    ):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(LimitExceeded, match=cause) as excinfo:
            unpack_layers(tmp_path / "new", *layers, limits=limits)
        assert excinfo.value.exit_code == 5
        assert list((tmp_path / "new").iterdir()) == []


def test_limits_of_bytes(tmp_path: Path) -> None:
    layers = [[file(str(number), bytes(40_000))] for number in range(3)]
    for limits in (Limits(layer_bytes=50_000), Limits(image_bytes=120_000)):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(LimitExceeded, match="larger than"):
            unpack_layers(tmp_path / "new", *layers, limits=limits)
        assert list((tmp_path / "new").iterdir()) == []
    unpack_layers(tmp_path, *layers, limits=Limits(layer_bytes=60_000, image_bytes=200_000))


def test_reported_size(tmp_path: Path) -> None:
    source = single_platform_image([layer_tar(file("x", bytes(100_000)), file("y", bytes(50_000)))])
    unpacked = unpack(source, platform_descriptor(source), tmp_path / "root")
    assert 150_000 < unpacked.size < 200_000
    assert unpacked.config.os == "linux"


def test_memory_is_bounded(tmp_path: Path) -> None:
    memory = MemoryImage()
    files = [file(f"{number % 50}/{number}") for number in range(5_000)]
    big = layer_tar(file("big", bytes(48 << 20)), *files)
    layers = [memory.put(big, LAYER_TAR)]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }
    from tests.support.oci import put_manifest

    memory.set_index(
        [{**put_manifest(memory, config, layers), "platform": {"os": "linux", "architecture": "amd64"}}]
    )
    tracemalloc.start()
    unpack(memory, platform_descriptor(memory), tmp_path / "root")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    assert (tmp_path / "root/big").stat().st_size == 48 << 20


# openat2


def test_kernel_without_openat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openat2, "_syscall", lambda *_: -1)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.ENOSYS)
    with pytest.raises(EmulatorError, match="openat2") as excinfo:
        unpack_layers(tmp_path, [file("a/x")])
    assert excinfo.value.hint
    assert list(tmp_path.iterdir()) == []


def test_openat2_retries_on_eagain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syscall, calls = openat2._syscall, []

    def interrupted(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) % 3:
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return int(syscall(*arguments))

    monkeypatch.setattr(openat2, "_syscall", interrupted)
    assert list_tree(unpack_layers(tmp_path, [file("a/x"), file("a/b/y")])) == {
        "a": "/",
        "a/x": "",
        "a/b": "/",
        "a/b/y": "",
    }
    assert len(calls) > 6


# Owner and mtime of entries, as in Go's archive/tar


def read_owner(
    info: tarfile.TarInfo, edit: Callable[[bytearray], None] | None = None
) -> tuple[int, int, int]:
    data = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    if edit is not None:
        offset = len(data) - 512
        header = data[offset:]
        edit(header)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data[offset:] = header
    reader = OwnerTarReader(io.BytesIO(bytes(data) + bytes(1024)))
    next(reader)
    return reader.read_owner()


def test_owner_and_mtime_of_header() -> None:
    info = member("x")
    info.uid, info.gid, info.mtime = 12, 34, 56
    assert read_owner(info) == (12, 34, 56_000_000_000)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"uid": "5000000000"}, (5_000_000_000, 34, 56_000_000_000)),
        ({"uid": "0", "gid": "0"}, (0, 0, 56_000_000_000)),
        ({"gid": "+7", "uid": "-7"}, (-7, 7, 56_000_000_000)),
        ({"mtime": "1.5"}, (12, 34, 1_500_000_000)),
        ({"mtime": "1.0000000019999"}, (12, 34, 1_000_000_001)),
        ({"mtime": "-1.5"}, (12, 34, -1_500_000_000)),
        ({"mtime": "7."}, (12, 34, 7_000_000_000)),
        ({"mtime": "", "uid": "", "gid": ""}, (12, 34, 56_000_000_000)),
        ({"path": "y"}, (12, 34, 56_000_000_000)),
    ],
)
def test_owner_and_mtime_of_pax(records: dict[str, str], expected: tuple[int, int, int]) -> None:
    info = member("x")
    info.uid, info.gid, info.mtime, info.pax_headers = 12, 34, 56, records
    assert read_owner(info) == expected


@pytest.mark.parametrize(
    "records",
    [
        {"uid": "x"}, {"gid": "1.5"}, {"uid": " 1"}, {"uid": "0x10"}, {"uid": "1_000"}, {"uid": "٣"},
        {"uid": str(1 << 63)}, {"gid": str(-(1 << 63) - 1)}, {"uid": "9" * 5000}, {"mtime": "x"},
        {"mtime": ".5"},
        {"mtime": "1.-5"}, {"mtime": "1e3"}, {"mtime": str(1 << 63)}, {"mtime": "9" * 5000},
        {"mtime": "1.5x"},
        {"uid": "1\0"},
    ],
)  # fmt: skip
def test_invalid_pax_owner_or_mtime(records: dict[str, str], tmp_path: Path) -> None:
    info = member("x")
    info.pax_headers = records
    with pytest.raises(MalformedImage):
        read_owner(info)
    unpack_error(tmp_path, [(info, b"")])


@pytest.mark.parametrize(
    ("offset", "field", "expected"),
    [
        (136, b"\xff" * 12, -1_000_000_000),
        (136, b"\x80" + (1 << 40).to_bytes(11, "big"), (1 << 40) * 1_000_000_000),
        (136, b"\x80" + (1 << 70).to_bytes(11, "big"), None),
        (136, b"9999999\0\0\0\0\0", None),
        (108, b"zzzzzzz\0", None),
        (116, b"12 34  \0", 0),
    ],
)
def test_numbers_of_header(offset: int, field: bytes, expected: int | None) -> None:
    def set_field(header: bytearray) -> None:
        header[offset : offset + len(field)] = field

    if expected is None:
        with pytest.raises(MalformedImage):
            read_owner(member("x"), set_field)
    else:
        assert read_owner(member("x"), set_field)[2] == expected


@pytest.mark.parametrize(("mtime", "expected"), [(-5, 0), (1 << 34, 0), (4_000_000_000, 4_000_000_000)])
def test_mtime_outside_go_range(mtime: int, expected: int, tmp_path: Path) -> None:
    root = unpack_layers(
        tmp_path, [file("f", mtime=mtime), directory("d", mtime=mtime), symlink("l", "t", mtime=mtime)]
    )
    assert [(root / name).lstat().st_mtime for name in "fdl"] == [expected] * 3


def test_pax_applies_to_one_entry() -> None:
    first, second = member("a"), member("b")
    first.pax_headers = {"uid": "77", "mtime": "5.5"}
    data = first.tobuf(tarfile.PAX_FORMAT) + second.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    reader = OwnerTarReader(io.BytesIO(data))
    owners = [reader.read_owner() for _ in reader]
    assert owners == [(77, 0, 5_500_000_000), (0, 0, 0)]


def test_pax_without_entry() -> None:
    info = member("a")
    info.pax_headers = {"mtime": "5.5"}
    reader = OwnerTarReader(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT)[:1024] + bytes(1024)))
    assert list(reader) == []
