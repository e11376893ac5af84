from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import gzip
import io
import os
import pickle
import stat
import tarfile
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import platform_manifests
from buildkit_tasks.oci.layers.tar import OwnerTarReader
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.run.sandbox import openat2 as beneath
from buildkit_tasks.run.sandbox.openat2 import remove_tree
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.support.oci import LAYER_TAR, Json, Memory, add_platform, flip, make_tar, member, one

NOBODY = 65534
ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root can give files away, or become somebody else")

Item = tuple[tarfile.TarInfo, bytes]


def item(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", *, link: str = "", **more: Any) -> Item:
    """An entry of a layer; ``more`` sets fields of its header: mode, uid, gid, mtime."""
    info = member(name, kind, link=link)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def a_file(name: str, data: bytes = b"", **more: Any) -> Item:
    return item(name, data=data, **more)


def a_folder(name: str, **more: Any) -> Item:
    return item(name, tarfile.DIRTYPE, **more)


def a_link(name: str, target: str, **more: Any) -> Item:
    return item(name, tarfile.SYMTYPE, link=target, **more)


def a_hard_link(name: str, target: str) -> Item:
    return item(name, tarfile.LNKTYPE, link=target)


def layer(*items: Item) -> bytes:
    """A layer's archive, its entries in just that order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in items:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def entry_of(source: Memory) -> Descriptor:
    return platform_manifests(source)[0][1]


def unpacked(place: Path, *layers: Iterable[Item], limits: Limits = LIMITS, **start: Any) -> Path:
    """The root of an image with these layers; ``start`` is its config's ``config``."""
    source = one([layer(*items) for items in layers], **start)
    root = place / "root"
    unpack(source, entry_of(source), root, limits=limits)
    return root


def refused(place: Path, *layers: Iterable[Item], limits: Limits = LIMITS, **start: Any) -> str:
    """Why that image is malformed; nothing of it is left."""
    with pytest.raises(MalformedImage) as caught:
        unpacked(place, *layers, limits=limits, **start)
    assert list(place.iterdir()) == []
    return caught.value.message


MADE = {"dev", "proc", "sys", "tmp", "etc", "etc/hosts"}


def listing(root: Path) -> dict[str, str]:
    """What was unpacked, and not made besides: a file's content, a link's target, a folder's slash."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name in MADE:
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text() if path.is_file() else "?"
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def erase(place: Path) -> None:
    """Remove it, however deep and whatever the modes."""
    above = os.open(place.parent, beneath.DIRECTORY_FLAGS)
    remove_tree(above, os.fsencode(place.name))
    os.close(above)
    assert not os.path.lexists(place)


def descriptors() -> set[tuple[str, str]]:
    """The open descriptors and what each leads to."""
    gc.collect()  # of earlier tests: what they forgot to close is closed now, and not in between
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one through which this folder is read
            found.add((each.name, str(each.readlink())))
    return found


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() - before == set()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user reaches, which is nobody's where we are root."""
    place = Path(tempfile.mkdtemp(prefix="unpack-"))
    if ROOT:
        os.chown(place, NOBODY, NOBODY)
    yield place
    erase(place)


def as_nobody(call: Callable[[], Any]) -> Any:
    """What that gives, or raises, done by an ordinary user in a process of its own."""
    if not ROOT:
        return call()
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child only calls and ends
        child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = (True, call())
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            answer = (False, repr(error))
        os.write(write, pickle.dumps(answer))
        os._exit(0)
    os.close(write)
    with open(read, "rb") as answers:  # noqa: PTH123 - a descriptor
        held, answer = pickle.loads(answers.read())  # noqa: S301 - our own child's
    os.waitpid(child, 0)
    assert held, answer
    return answer


# What entries become.


def test_files_folders_links_and_fifos_are_made_with_content_mode_and_time(tmp_path: Path) -> None:
    items = [
        a_folder("bin", mode=0o750, mtime=1_500_000_000),
        a_file("bin/busybox", b"program" * 1000, mode=0o711, mtime=1_600_000_000.5),
        a_link("bin/sh", "busybox", mtime=1_400_000_000),
        a_hard_link("bin/ls", "bin/busybox"),
        item("pipe", tarfile.FIFOTYPE, mode=0o640, mtime=1_300_000_000),
        item("data", tarfile.CONTTYPE, b"contiguous"),
    ]
    root = unpacked(tmp_path, items)
    assert (root / "bin/busybox").read_bytes() == b"program" * 1000
    assert (root / "bin/ls").samefile(root / "bin/busybox")
    assert (root / "bin/sh").readlink() == Path("busybox")
    assert (root / "data").read_bytes() == b"contiguous"
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert [mode(root / name) for name in ("bin", "bin/busybox", "pipe", "")] == [0o750, 0o711, 0o640, 0o755]
    times = [(root / name).lstat().st_mtime for name in ("bin", "bin/busybox", "bin/sh", "pipe")]
    assert times == [1_500_000_000, 1_600_000_000.5, 1_400_000_000, 1_300_000_000]


def test_the_umask_takes_nothing_away(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        items = [
            a_folder("a", mode=0o777),
            a_file("a/b", mode=0o666),
            a_file("c/d"),
            item("p", tarfile.FIFOTYPE, mode=0o666),
        ]
        root = unpacked(tmp_path, items, WorkingDir="/w")
    finally:
        os.umask(before)
    names = ("", "a", "a/b", "c", "p", "w", "tmp", "proc", "etc", "etc/hosts")
    assert [oct(mode(root / name)) for name in names] == [
        "0o755", "0o777", "0o666", "0o755", "0o666", "0o755", "0o1777", "0o755", "0o755", "0o644",
    ]  # fmt: skip


def test_no_file_keeps_setuid_or_setgid_and_only_folders_are_sticky(tmp_path: Path) -> None:
    items = [
        a_file("file", mode=0o6755),
        a_folder("folder", mode=0o7777),
        item("pipe", tarfile.FIFOTYPE, mode=0o6644),
        a_file("sticky", mode=0o1644),
    ]
    root = unpacked(tmp_path, items)
    names = ("file", "folder", "pipe", "sticky")
    assert [oct(mode(root / name)) for name in names] == ["0o755", "0o1777", "0o644", "0o644"]


def test_a_device_is_not_made_and_yet_replaces_what_stood_there(tmp_path: Path) -> None:
    devices = [item("a", tarfile.CHRTYPE, devmajor=1), item("b", tarfile.BLKTYPE), item("c", tarfile.CHRTYPE)]
    assert listing(unpacked(tmp_path, [a_file("a"), a_file("b/x"), a_file("d")], devices)) == {"d": ""}


@pytest.mark.parametrize("kind", [b"V", b"M", b"A", b"8"])
def test_an_entry_of_an_unknown_kind_is_refused_as_by_engines(kind: bytes, tmp_path: Path) -> None:
    assert "unknown type" in refused(tmp_path, [item("a", kind)])


def test_the_root_itself_keeps_our_mode_whatever_an_entry_says(tmp_path: Path) -> None:
    names = (".", "./", "/", "./.", "")
    assert mode(unpacked(tmp_path, [a_folder(name, mode=0) for name in names])) == 0o755


def test_names_may_be_absolute_and_have_dots_and_slashes_too_many(tmp_path: Path) -> None:
    items = [a_folder("/a/./b/."), a_file("./a//b///x"), a_folder("//c//"), a_file("c/./y")]
    assert listing(unpacked(tmp_path, items)) == {"a": "/", "a/b": "/", "a/b/x": "", "c": "/", "c/y": ""}


def test_bytes_that_are_no_utf_8_are_kept_in_names_and_targets(tmp_path: Path) -> None:
    name, target = b"a\xff\xfe".decode("utf-8", "surrogateescape"), b"\xe9".decode("utf-8", "surrogateescape")
    data = make_tar({}, [a_file(name)[0], a_link("l", target)[0]], tarfile.GNU_FORMAT)
    source = one([data])
    unpack(source, entry_of(source), tmp_path / "root")
    assert b"a\xff\xfe" in os.listdir(os.fsencode(tmp_path / "root"))  # noqa: PTH208 - bytes
    assert os.readlink(os.fsencode(tmp_path / "root/l")) == b"\xe9"  # noqa: PTH115 - likewise


def test_equal_symbolic_links_share_an_inode_and_are_replaced_one_by_one(tmp_path: Path) -> None:
    links = [a_link(f"bin/{name}", "busybox") for name in "abcd"]
    again = [a_link("bin/a", "other"), a_file("bin/b", b"file"), a_link("bin/e", "busybox")]
    root = unpacked(tmp_path, [*links, *again], [a_link("bin/c", "third")])
    assert listing(root / "bin") == {
        "a": "-> other", "b": "file", "c": "-> third", "d": "-> busybox", "e": "-> busybox",
    }  # fmt: skip
    assert (root / "bin/d").lstat().st_nlink == 1


def test_an_equal_link_in_another_folder_is_no_other_name_of_what_is_called_so_there(tmp_path: Path) -> None:
    items = [a_link("one/a", "t"), a_file("two/a", b"file"), a_link("two/b", "t"), a_link("one/c", "t")]
    root = unpacked(tmp_path, items, [a_link("two/d", "t")])
    assert listing(root) == {
        "one": "/", "one/a": "-> t", "one/c": "-> t",
        "two": "/", "two/a": "file", "two/b": "-> t", "two/d": "-> t",
    }  # fmt: skip


def test_symbolic_links_are_alike_only_with_one_target_time_and_owner(tmp_path: Path) -> None:
    links = [
        a_link("a", "t"),
        a_link("b", "t", mtime=5),
        a_link("c", "u"),
        a_link("d", "t"),
        a_link("e/f", "t"),
    ]
    root = unpacked(tmp_path, [*links, a_link("g", "t", uid=5)])
    numbers = [(root / name).lstat().st_ino for name in ("a", "b", "c", "e/f", "g")]
    assert len(set(numbers)) == 5
    assert (root / "d").lstat().st_ino == numbers[0]
    assert (root / "b").lstat().st_mtime == 5


def test_many_kinds_of_links_in_a_folder_are_as_good(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_link(f"l{number}", f"t{number // 2}") for number in range(300)])
    assert {(root / f"l{number}").readlink() == Path(f"t{number // 2}") for number in range(300)} == {True}


def test_a_file_system_that_gives_links_no_second_name_gets_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", full)
    root = unpacked(tmp_path, [a_link("a", "t"), a_link("b", "t"), a_link("b", "t")])
    assert listing(root) == {"a": "-> t", "b": "-> t"}


# Where entries go.


def test_missing_parents_are_made_and_usable_by_all(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_file("a/b/c", b"1")])
    assert [mode(root / name) for name in ("a", "a/b")] == [0o755, 0o755]


def test_links_of_the_image_lead_where_they_would_if_it_were_the_root(tmp_path: Path) -> None:
    items = [
        a_folder("real/deep"),
        a_link("absolute", "/real"),
        a_link("real/up", "../../../real/deep"),
        a_link("dots", "real/deep/../../../../../real"),
        a_file("absolute/x", b"1"),
        a_file("real/up/y", b"2"),
        a_file("dots/z", b"3"),
    ]
    root = unpacked(tmp_path, items)
    assert [(root / "real" / name).read_text() for name in ("x", "deep/y", "z")] == ["1", "2", "3"]


def test_a_link_to_nothing_on_the_way_gets_its_folder(tmp_path: Path) -> None:
    items = [
        a_link("var/run", "/run/../run/here"),
        a_file("var/run/sub/x", b"1"),
        a_link("a/l", "../../../b//./c"),
        a_file("a/l/y", b"2"),
    ]
    root = unpacked(tmp_path, items)
    assert (root / "run/here/sub/x").read_text() == "1"
    assert (root / "b/c/y").read_text() == "2"


@pytest.mark.parametrize(
    "items",
    [
        [a_link("a", "b"), a_link("b", "a"), a_file("a/x")],
        [a_link("a", "a"), a_file("a/x")],
        [a_link("a", "a/b/c"), a_file("a/x")],
        [a_link("l0", "/gone"), *(a_link(f"l{n + 1}", f"l{n}") for n in range(50)), a_file("l50/x")],
        [a_link("loop", "loop"), a_link("l", "gone/../loop"), a_file("l/x")],
    ],
    ids=["pair", "self", "deeper self", "chain", "after a missing folder"],
)
@pytest.mark.timeout(60)
def test_row_46_links_in_a_circle_are_refused(items: list[Item], tmp_path: Path) -> None:
    assert "symbolic links" in refused(tmp_path, items)


@pytest.mark.parametrize(
    "items",
    [
        [a_file("a"), a_file("a/x")],
        [a_file("a"), a_folder("a/b/c")],
        [a_file("a"), a_link("l", "a"), a_file("l/x")],
    ],
)
def test_below_a_file_nothing_can_be(items: list[Item], tmp_path: Path) -> None:
    assert "Not a directory" in refused(tmp_path, items)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "a/..", "..", "a/../x", "/../x", ".wh.a/../x", "../.wh.x"]
)
def test_row_40_a_name_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    assert "leads out of its directory" in refused(tmp_path, [a_file(name)])


def test_an_entry_after_its_parent_became_another_goes_to_the_new_one(tmp_path: Path) -> None:
    items = [
        a_folder("one"), a_folder("two"), a_link("l", "one"), a_file("l/a"), a_link("l", "two"),
        a_file("l/b"),
        a_folder("f"), a_file("f/a"), a_link("f", "one"), a_file("f/c"), a_folder("f"), a_file("f/d"),
    ]  # fmt: skip
    assert listing(unpacked(tmp_path, items)) == {
        "one": "/", "one/a": "", "one/c": "", "two": "/", "two/b": "", "l": "-> two", "f": "/", "f/d": "",
    }  # fmt: skip


def test_the_link_through_which_an_entry_came_can_be_replaced_by_it(tmp_path: Path) -> None:
    items = [a_folder("p"), a_link("p/l", "."), a_file("p/l/l", b"1")]
    assert listing(unpacked(tmp_path, items)) == {"p": "/", "p/l": "1"}


def test_more_folders_at_once_than_are_kept_open_are_as_good(tmp_path: Path) -> None:
    names = [f"{folder}/{number}" for number in range(5) for folder in "abcdefghijklmnopqrstuvwxyz"]
    root = unpacked(tmp_path, [a_file(name) for name in names])
    assert set(names) <= set(listing(root))


# What an entry does to what is there.


@pytest.mark.parametrize("split", [False, True], ids=["in one layer", "by another layer"])
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([a_file("x", b"1")], a_folder("x"), {"x": "/"}),
        ([a_file("x/a/b"), a_link("x/l", "/etc")], a_file("x", b"2"), {"x": "2"}),
        ([a_file("x/a/b")], a_link("x", "y"), {"x": "-> y"}),
        ([a_file("x/a")], a_folder("x", mode=0o700), {"x": "/", "x/a": ""}),
        ([a_file("y/a", b"1"), a_link("x", "y")], a_folder("x"), {"x": "/", "y": "/", "y/a": "1"}),
        ([a_file("y", b"1"), a_link("x", "y")], a_file("x", b"2"), {"x": "2", "y": "1"}),
        ([a_file("y", b"1"), a_hard_link("x", "y")], a_file("x", b"2"), {"x": "2", "y": "1"}),
        ([a_file("y", b"1"), a_file("x/z")], a_hard_link("x", "y"), {"x": "1", "y": "1"}),
        ([a_file("y", b"1"), a_hard_link("x", "y")], a_hard_link("x", "y"), {"x": "1", "y": "1"}),
        ([a_file("x", b"1")], a_hard_link("x", "x"), {"x": "1"}),
        ([a_file("x/a")], item("x", tarfile.FIFOTYPE), {"x": "?"}),
        ([item("x", tarfile.FIFOTYPE)], a_file("x", b"2"), {"x": "2"}),
    ],
)
def test_an_entry_replaces_what_stood_there_and_only_folders_merge(
    before: list[Item], after: Item, expected: dict[str, str], split: bool, tmp_path: Path
) -> None:
    layers = [before, [after]] if split else [[*before, after]]
    root = unpacked(tmp_path, *layers)
    assert listing(root) == expected
    if expected.get("x") == "/":
        assert mode(root / "x") == after[0].mode


def test_a_folder_that_is_replaced_leaves_its_mode_to_none_that_comes_after(tmp_path: Path) -> None:
    items = [a_folder("x", mode=0o500), a_file("x"), *(a_file(f"{name}/f") for name in "abcdefgh")]
    root = unpacked(tmp_path, items)
    assert {mode(root / name) for name in "abcdefgh"} == {0o755}


def test_hard_links_reach_lower_layers_and_go_through_links_of_the_image(tmp_path: Path) -> None:
    below = [
        a_file("usr/bin/x", b"1"),
        a_link("bin", "usr/bin"),
        a_link("usr/bin/s", "x"),
        a_link("n", "/no"),
    ]
    above = [
        a_hard_link("b", "bin"),
        a_hard_link("m", "n"),
        a_hard_link("y", "bin/x"),
        a_hard_link("z", "/usr/../../bin/x"),
        a_hard_link("t", "usr/bin/s"),
        a_hard_link("./u", "./bin/./x"),
    ]
    root = unpacked(tmp_path, below, above)
    assert all((root / name).samefile(root / "usr/bin/x") for name in "yzu")
    assert (root / "t").is_symlink()
    assert [str((root / name).readlink()) for name in "tbm"] == ["x", "usr/bin", "/no"]


@pytest.mark.parametrize(
    "target", ["gone", "a", "a/", ".", "..", "", "/", "a/gone/x", "f/x", "../../etc/passwd"]
)
def test_a_hard_link_to_no_file_is_refused(target: str, tmp_path: Path) -> None:
    assert "is not a file in the image" in refused(
        tmp_path, [a_folder("a"), a_file("f"), a_hard_link("x", target)]
    )


def test_a_hard_link_into_the_folder_that_it_replaces_is_refused(tmp_path: Path) -> None:
    assert "is not a file in the image" in refused(tmp_path, [a_file("a/b"), a_hard_link("a", "a/b")])


# Whiteouts.


def test_a_whiteout_hides_a_file_a_link_and_a_folder_with_all_in_it(tmp_path: Path) -> None:
    below = [a_file("a"), a_link("b", "keep"), a_file("c/d/e"), a_link("c/l", "../keep"), a_file("keep/f")]
    above = [a_file(f".wh.{name}") for name in ("a", "b", "c", "gone")]
    assert listing(unpacked(tmp_path, below, above)) == {"keep": "/", "keep/f": ""}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (["x"], ["x", ".wh.x"], ["x"]),
        (["x/old"], ["x/new", ".wh.x"], ["x/new"]),
        (["x/old", "x/s/old"], ["x/s/new", ".wh.x"], ["x/s/new"]),
        (["x/old", "y/old"], ["x/new", "x/.wh..wh..opq"], ["x/new", "y/old"]),
        (["x/s/old", "x/t/old"], ["x/s/new", "x/.wh..wh..opq"], ["x/s/new"]),
        (["x/s/old", "x/t/old"], ["x/s/new", "x/.wh.t", "x/s/.wh.old"], ["x/s/new"]),
        (["a", "b/c"], ["b/d", ".wh..wh..opq"], ["b/d"]),
        (["x/old"], [".wh.x", "x/.wh.old", "x/.wh..wh..opq"], []),
        (["x/old"], ["x/.wh.new", "x/new"], ["x/old", "x/new"]),
        (["x/old"], ["y/.wh.old", "y/.wh..wh..opq"], ["x/old"]),
        (["x"], ["x/.wh.a", "x/.wh..wh..opq"], ["x"]),
    ],
)
def test_whiteouts_spare_their_own_layer_in_whatever_order(
    below: list[str], above: list[str], expected: list[str], backwards: bool, tmp_path: Path
) -> None:
    upper = above[::-1] if backwards else above
    root = unpacked(tmp_path, [a_file(name) for name in below], [a_file(name) for name in upper])
    assert sorted(name for name, held in listing(root).items() if held != "/") == sorted(expected)


@pytest.mark.parametrize("opaque_first", [False, True])
def test_a_folder_that_its_layer_has_itself_stays_though_all_in_it_is_hidden(
    opaque_first: bool, tmp_path: Path
) -> None:
    above = [
        a_folder("x", mode=0o711),
        a_folder("x/s", mode=0o700),
        a_file("x/.wh..wh..opq"),
        a_file(".wh.x"),
    ]
    root = unpacked(tmp_path, [a_file("x/s/old"), a_file("x/t/old")], above[::-1] if opaque_first else above)
    assert listing(root) == {"x": "/", "x/s": "/"}
    assert [mode(root / "x"), mode(root / "x/s")] == [0o711, 0o700]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("below", ["x/old", "x/s/old", "y"])
def test_a_folder_in_which_its_layer_has_only_a_device_stays(
    below: str, backwards: bool, tmp_path: Path
) -> None:
    above = [item("x/s/null", tarfile.CHRTYPE), a_file(".wh.x"), a_file("x/.wh.s"), a_file("x/.wh..wh..opq")]
    root = unpacked(tmp_path, [a_file(below), a_file("y")], above[::-1] if backwards else above)
    assert listing(root) == {"x": "/", "x/s": "/", "y": ""}


def test_a_whiteout_in_the_lowest_layer_hides_nothing(tmp_path: Path) -> None:
    items = [a_file("x"), a_file(".wh.x"), a_file("y/z"), a_file("y/.wh..wh..opq")]
    assert listing(unpacked(tmp_path, items)) == {"x": "", "y": "/", "y/z": ""}


def test_a_whiteout_of_the_third_layer_hides_both_below(tmp_path: Path) -> None:
    layers = [
        [a_file("x/a")],
        [a_file("x/b"), a_file("y")],
        [a_file("x/.wh..wh..opq"), a_file("x/c"), a_file(".wh.y")],
    ]
    assert listing(unpacked(tmp_path, *layers)) == {"x": "/", "x/c": ""}


def test_a_whiteout_goes_where_a_link_leads_and_spares_where_it_led_before(tmp_path: Path) -> None:
    below = [a_file("one/x"), a_file("two/x"), a_link("l", "one"), a_link("m", "two")]
    above = [a_file("l/.wh.x"), a_file(".wh.l"), a_file("m/y"), a_file("m/.wh..wh..opq")]
    assert listing(unpacked(tmp_path, below, above)) == {"one": "/", "two": "/", "two/y": "", "m": "-> two"}


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_whiteout_of_any_kind_is_one(kind: bytes, tmp_path: Path) -> None:
    assert listing(unpacked(tmp_path, [a_file("x")], [item(".wh.x", kind, link="y")])) == {}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh...", "a/.wh."])
def test_a_whiteout_of_no_name_is_refused(name: str, tmp_path: Path) -> None:
    assert "names nothing to hide" in refused(tmp_path, [a_file("a/x")], [a_file(name)])


def test_what_aufs_noted_for_itself_is_left_out(tmp_path: Path) -> None:
    notes = [
        a_folder(".wh..wh.plnk"),
        a_file(".wh..wh.plnk/1.2", b"x"),
        a_file("a/.wh..wh.orph/y"),
        a_file(".wh..wh.aufs"),
    ]
    assert listing(unpacked(tmp_path, [a_file("x")], notes)) == {"x": ""}


def test_very_many_whiteouts_of_one_layer_go_through_a_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[object] = []
    scandir = os.scandir

    def noted(folder: int) -> object:
        scanned.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", noted)
    below = [a_file(f"x/s{number}/old") for number in range(20)]
    above = [a_file(f"x/s{number}/new") for number in range(20)]
    each = [f"x/s{number}/.wh..wh..opq" for number in range(20)]
    opaque = [a_file(name) for _ in range(10) for name in ("x/.wh..wh..opq", ".wh.x", *each)]
    new = [a_file(f"n{number}/{name}") for number in range(30) for name in ("a", ".wh..wh..opq")]
    root = unpacked(tmp_path, below, [*above, *opaque, *new])
    assert len(scanned) < 90  # to hide, and to give modes in the end; only the latter for new folders
    assert len(listing(root)) == 41 + 60


# What is made besides.


def test_what_a_container_needs_is_made_where_it_is_missing(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_file("x")], WorkingDir="/srv/app")
    assert [oct(mode(root / name)) for name in ("proc", "sys", "dev", "tmp", "srv/app")] == [
        "0o755", "0o755", "0o755", "0o1777", "0o755",
    ]  # fmt: skip
    assert (root / "etc/hosts").read_text() == "127.0.0.1\tlocalhost\n::1\tlocalhost\n"


def test_what_an_image_has_of_it_is_kept(tmp_path: Path) -> None:
    items = [a_folder("tmp", mode=0o700), a_file("etc/hosts", b"mine", mode=0o600), a_folder("w", mode=0o711)]
    root = unpacked(tmp_path, items, WorkingDir="w")
    assert (mode(root / "tmp"), mode(root / "w"), mode(root / "etc/hosts")) == (0o700, 0o711, 0o600)
    assert (root / "etc/hosts").read_text() == "mine"


def test_an_empty_etc_hosts_is_filled_and_its_other_names_are_not(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_file("empty"), a_hard_link("etc/hosts", "empty")])
    assert (root / "etc/hosts").stat().st_size
    assert (root / "empty").read_bytes() == b""


@pytest.mark.parametrize("link", ["/etc/elsewhere", "../../../../gone", "/empty"])
def test_an_etc_hosts_that_is_a_link_is_left_alone(link: str, tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_file("empty"), a_link("etc/hosts", link)])
    assert (root / "etc/hosts").readlink() == Path(link)
    assert listing(root) == {"empty": ""}


def test_an_etc_hosts_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [item("etc/hosts", tarfile.FIFOTYPE)])
    assert stat.S_ISFIFO((root / "etc/hosts").stat().st_mode)


@pytest.mark.parametrize("etc", [a_file("etc", b"x"), a_link("etc", "etc"), a_link("etc", "file")])
def test_an_etc_that_is_no_folder_gets_no_hosts(etc: Item, tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_file("file", b"1"), etc])
    assert not (root / "etc").is_dir()


def test_an_etc_that_is_a_link_leads_inside(tmp_path: Path) -> None:
    assert (unpacked(tmp_path, [a_link("etc", "/real/etc")]) / "real/etc/hosts").is_file()


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "tmp"])
def test_where_something_is_mounted_there_is_a_folder_and_no_link(name: str, tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_file("etc/x"), a_link(name, "etc")])
    assert stat.S_ISDIR((root / name).lstat().st_mode)
    (root / name).rmdir()


@pytest.mark.parametrize("folder", ["/a/b", "a/b", "/l/../a/b", "//a/./b/", "/../../a/b", "/l/b"])
def test_the_working_directory_is_made_in_the_image(folder: str, tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_link("l", "/a")], WorkingDir=folder)
    assert (root / "a/b").is_dir() or folder.startswith("/l/..")
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


@pytest.mark.parametrize("folder", ["/f/x", "/f", "/loop/x", f"/{'n' * 256}", "/a" * 2500, "/a\0b", "\0"])
def test_a_working_directory_that_cannot_be_is_refused(folder: str, tmp_path: Path) -> None:
    assert "the working directory" in refused(
        tmp_path, [a_file("f"), a_link("loop", "loop")], WorkingDir=folder
    )


# Names that Linux does not take.


@pytest.mark.parametrize(
    "name", ["n" * 256, "a/" + "n" * 256, "n" * 256 + "/a", "ü" * 128, "a/" * 2047 + "bb"]
)
def test_a_name_that_is_too_long_is_refused(name: str, tmp_path: Path) -> None:
    said = refused(tmp_path, [a_file(name)])
    assert "path longer than Linux allows" in said or "File name too long" in said


def test_names_as_long_as_linux_takes_are_made(tmp_path: Path) -> None:
    names = ["n" * 255, "ü" * 127, "a/" * 2047 + "b"]
    erase(unpacked(tmp_path, [*map(a_file, names), a_link("l", "t" * 4095)]))


@pytest.mark.parametrize("target", ["", "t" * 4096])
def test_a_link_to_what_no_path_can_be_is_refused(target: str, tmp_path: Path) -> None:
    refused(tmp_path, [a_link("l", target)])


@pytest.mark.parametrize("key", ["path", "linkpath"])
def test_a_name_with_a_nul_is_refused(key: str, tmp_path: Path) -> None:
    info, _ = a_link("l", "t")
    info.pax_headers = {key: "a\0b"}
    assert "a NUL" in refused(tmp_path, [(info, b"")])


def test_folders_deeper_than_any_path_are_made_changed_and_removed(tmp_path: Path) -> None:
    deep = "d/" * 1000
    items = [
        a_folder(deep),
        a_link("l1", deep),
        a_folder(f"l1/{deep}"),
        a_link("l2", f"l1/{deep}"),
        a_file(f"l2/{deep}x"),
    ]
    changes = [a_file(f"l2/{deep}.wh.x"), a_file(f"l2/{deep}y"), a_file("l2/.wh..wh..opq")]
    root = unpacked(tmp_path, items, changes, [a_file(".wh.d"), a_file("z")])
    assert listing(root) == {"l1": f"-> {deep[:-1]}", "l2": f"-> l1/{deep[:-1]}", "z": ""}
    erase(root)
    unpacked(tmp_path, items)
    assert len(descriptors()) < 100
    erase(root)
    refused(tmp_path, items, [a_file("../x")])


# Whose everything is.


@only_root
def test_with_a_shift_everything_belongs_to_its_range(tmp_path: Path) -> None:
    below = [
        a_folder("d", uid=1, gid=2),
        a_file("d/f", b"x", uid=1000, gid=65535),
        a_link("s", "t", uid=3, gid=4),
    ]
    above = [
        item("p", tarfile.FIFOTYPE, uid=5, gid=6), a_file("big", uid=65536, gid=1 << 20),
        a_folder("d", uid=7, gid=8),
        a_hard_link("h", "d/f"), a_file("made/f"), a_link("s2", "t", uid=3, gid=4),
    ]  # fmt: skip
    source = one([layer(*below), layer(*above)], WorkingDir="/w")
    root = tmp_path / "root"
    unpack(source, entry_of(source), root, id_offset=100_000)
    owners = {
        str(path.relative_to(root)): (path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")
    }
    base = (100_000, 100_000)
    assert owners == {
        **dict.fromkeys(["dev", "proc", "sys", "tmp", "etc", "etc/hosts", "w", "made", "made/f"], base),
        "d": (100_007, 100_008), "d/f": (101_000, 165_535), "h": (101_000, 165_535),
        "s": (100_003, 100_004), "s2": (100_003, 100_004), "p": (100_005, 100_006), "big": (165_534, 165_534),
    }  # fmt: skip
    assert (root.stat().st_uid, root.stat().st_gid) == base


@only_root
def test_without_a_shift_everything_is_ours(tmp_path: Path) -> None:
    root = unpacked(tmp_path, [a_folder("d", uid=1), a_file("d/f", uid=1000, gid=5), a_link("s", "t", uid=3)])
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")} == {(0, 0)}


def test_an_ordinary_user_unpacks_into_folders_that_nobody_may_use(open_folder: Path) -> None:
    below = [
        a_folder("a", mode=0),
        a_file("a/x", b"1", mode=0),
        a_folder("a/b", mode=0o555),
        a_file("a/b/y", b"2"),
    ]
    above = [
        a_file("a/z", b"3"),
        a_folder("c", mode=0o111),
        a_file("c/x"),
        a_file("a/b/.wh.y"),
        a_file("c/d/e"),
    ]
    root = as_nobody(lambda: unpacked(open_folder, below, above))
    assert [oct(mode(root / name)) for name in ("a", "a/x", "a/b", "c", "c/d")] == [
        "0o0", "0o0", "0o555", "0o111", "0o755",
    ]  # fmt: skip
    if ROOT:
        assert sorted(name for name in listing(root)) == [
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


def test_an_ordinary_user_removes_what_nobody_may_use_and_follows_no_link(open_folder: Path) -> None:
    canary = open_folder / "canary"
    canary.mkdir()
    (canary / "file").write_text("alive")
    canary.chmod(0o755)
    items = [
        a_folder("a", mode=0), a_folder("a/b", mode=0), a_file("a/b/x", mode=0), a_folder("c", mode=0o444),
        a_file("c/d/y"), a_link("out", str(canary)), a_link("a/out", "../../canary"),
        a_folder("e", mode=0o300),
    ]  # fmt: skip

    def done() -> None:
        erase(unpacked(open_folder, items))

    as_nobody(done)
    assert [path.name for path in open_folder.iterdir()] == ["canary"]
    assert (canary / "file").read_text() == "alive"
    assert mode(canary) == 0o755


def test_a_folder_that_cannot_be_written_is_told_of_with_what_to_look_at(tmp_path: Path) -> None:
    source = one([layer(a_file("x"))])
    with pytest.raises(EmulatorError, match="cannot be unpacked into") as caught:
        unpack(source, entry_of(source), tmp_path / "gone" / "root")
    assert caught.value.exit_code == 3
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mine").touch()
    with pytest.raises(EmulatorError, match="File exists"):
        unpack(source, entry_of(source), tmp_path / "root")
    assert (tmp_path / "root/mine").exists()


# Checks and caps.


def test_what_an_image_says_of_its_layers_is_checked(tmp_path: Path) -> None:
    data = layer(a_file("x", b"1" * 5000))
    memory = Memory()

    def why(entry: Json) -> str:
        memory.index([entry])
        with pytest.raises(MalformedImage) as caught:
            unpack(memory, entry_of(memory), tmp_path / "root")
        assert list(tmp_path.iterdir()) == []
        return caught.value.message

    other = f"sha256:{'0' * 64}"
    entry = add_platform(memory, "linux/amd64", [data], diff_ids=[other])
    assert f"the config states {other}" in why(entry)
    assert "1 layers, the config 2 diff_ids" in why(
        add_platform(memory, "linux/amd64", [data], diff_ids=[other] * 2)
    )
    entry = add_platform(memory, "linux/amd64", [data])
    digest, blob = next((name, held) for name, held in memory.blobs.items() if held.startswith(b"\x1f\x8b"))
    memory.blobs[digest] = flip(blob, -30)
    assert digest in why(entry)
    memory.blobs[digest] = blob + b"more"
    assert f"{digest} is longer" in why(entry)
    memory.blobs[digest] = gzip.compress(layer(a_file("../x")))
    assert "holds other bytes" in why(entry) or "are stated" in why(entry)


def test_a_malformed_layer_is_named(tmp_path: Path) -> None:
    memory = Memory()
    entry = add_platform(memory, "linux/amd64", [layer(a_file("x")), layer(a_file("../x"))])
    memory.index([entry])
    digest = next(
        name for name, held in memory.blobs.items() if held == gzip.compress(layer(a_file("../x")), mtime=0)
    )
    with pytest.raises(MalformedImage, match=f"^layer {digest}: "):
        unpack(memory, entry_of(memory), tmp_path / "root")


def test_files_have_a_cap_over_all_layers_and_so_have_folders_that_no_entry_is_for(tmp_path: Path) -> None:
    many = [[a_file(f"{number}-{each}") for each in range(10)] for number in range(4)]
    assert unpacked(tmp_path, *many, limits=Limits(entries=45))
    for layers, limits, cause in (
        (many, Limits(entries=39), "too many files"),
        ([[a_file("a/" * 50 + "x")]], Limits(entries=40), "too many files"),
        ([[a_file("a/" * 50 + "x")]], Limits(nodes=40), "too many directories"),
        ([[a_folder(f"{each}") for each in range(50)]], Limits(nodes=49), "too many directories"),
    ):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(LimitExceeded, match=cause) as caught:
            unpacked(tmp_path / "new", *layers, limits=limits)
        assert caught.value.exit_code == 5
        assert list((tmp_path / "new").iterdir()) == []


def test_bytes_have_a_cap_for_a_layer_and_for_the_image(tmp_path: Path) -> None:
    layers = [[a_file(str(number), bytes(40_000))] for number in range(3)]
    for limits in (Limits(layer_bytes=50_000), Limits(image_bytes=120_000)):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(LimitExceeded, match="larger than"):
            unpacked(tmp_path / "new", *layers, limits=limits)
        assert list((tmp_path / "new").iterdir()) == []
    unpacked(tmp_path, *layers, limits=Limits(layer_bytes=60_000, image_bytes=200_000))


def test_what_it_takes_is_told(tmp_path: Path) -> None:
    source = one([layer(a_file("x", bytes(100_000)), a_file("y", bytes(50_000)))])
    done = unpack(source, entry_of(source), tmp_path / "root")
    assert 150_000 < done.size < 200_000
    assert done.config.os == "linux"


def test_memory_does_not_grow_with_a_file_or_with_their_number(tmp_path: Path) -> None:
    memory = Memory()
    files = [a_file(f"{number % 50}/{number}") for number in range(20_000)]
    big = layer(a_file("big", bytes(48 << 20)), *files)
    layers = [memory.put(big, LAYER_TAR)]
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }
    from tests.support.oci import put_manifest

    memory.index(
        [{**put_manifest(memory, config, layers), "platform": {"os": "linux", "architecture": "amd64"}}]
    )
    tracemalloc.start()
    unpack(memory, entry_of(memory), tmp_path / "root")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert (tmp_path / "root/big").stat().st_size == 48 << 20


# The seam.


def test_a_kernel_without_openat2_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beneath, "_syscall", lambda *_: -1)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.ENOSYS)
    with pytest.raises(EmulatorError, match="openat2") as caught:
        unpacked(tmp_path, [a_file("a/x")])
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_rename_elsewhere_makes_opening_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = beneath._syscall, []

    def disturbed(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) % 3:
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(beneath, "_syscall", disturbed)
    assert listing(unpacked(tmp_path, [a_file("a/x"), a_file("a/b/y")])) == {
        "a": "/",
        "a/x": "",
        "a/b": "/",
        "a/b/y": "",
    }
    assert len(calls) > 6


# Whose an entry is, and of when: the reader.


def owner_of(info: tarfile.TarInfo, raw: Callable[[bytearray], None] | None = None) -> tuple[int, int, int]:
    data = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    if raw is not None:
        at = len(data) - 512
        header = data[at:]
        raw(header)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data[at:] = header
    reader = OwnerTarReader(io.BytesIO(bytes(data) + bytes(1024)))
    next(reader)
    return reader.read_owner()


def test_owner_and_time_come_from_the_header() -> None:
    info = member("x")
    info.uid, info.gid, info.mtime = 12, 34, 56
    assert owner_of(info) == (12, 34, 56_000_000_000)


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
def test_a_pax_header_says_more_of_them_as_in_go(
    records: dict[str, str], expected: tuple[int, int, int]
) -> None:
    info = member("x")
    info.uid, info.gid, info.mtime, info.pax_headers = 12, 34, 56, records
    assert owner_of(info) == expected


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
def test_a_pax_owner_or_time_that_is_none_is_refused_as_in_go(
    records: dict[str, str], tmp_path: Path
) -> None:
    info = member("x")
    info.pax_headers = records
    with pytest.raises(MalformedImage):
        owner_of(info)
    refused(tmp_path, [(info, b"")])


@pytest.mark.parametrize(
    ("at", "field", "expected"),
    [
        (136, b"\xff" * 12, -1_000_000_000),
        (136, b"\x80" + (1 << 40).to_bytes(11, "big"), (1 << 40) * 1_000_000_000),
        (136, b"\x80" + (1 << 70).to_bytes(11, "big"), None),
        (136, b"9999999\0\0\0\0\0", None),
        (108, b"zzzzzzz\0", None),
        (116, b"12 34  \0", 0),
    ],
)
def test_numbers_in_a_header_are_read_or_refused_as_in_go(
    at: int, field: bytes, expected: int | None
) -> None:
    def put(header: bytearray) -> None:
        header[at : at + len(field)] = field

    if expected is None:
        with pytest.raises(MalformedImage):
            owner_of(member("x"), put)
    else:
        assert owner_of(member("x"), put)[2] == expected


@pytest.mark.parametrize(("mtime", "kept"), [(-5, 0), (1 << 34, 0), (4_000_000_000, 4_000_000_000)])
def test_a_time_that_go_cannot_tell_is_the_beginning_of_time(mtime: int, kept: int, tmp_path: Path) -> None:
    root = unpacked(
        tmp_path, [a_file("f", mtime=mtime), a_folder("d", mtime=mtime), a_link("l", "t", mtime=mtime)]
    )
    assert [(root / name).lstat().st_mtime for name in "fdl"] == [kept] * 3


def test_what_is_said_of_one_entry_is_not_said_of_the_next() -> None:
    first, second = member("a"), member("b")
    first.pax_headers = {"uid": "77", "mtime": "5.5"}
    data = first.tobuf(tarfile.PAX_FORMAT) + second.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    reader = OwnerTarReader(io.BytesIO(data))
    owners = [reader.read_owner() for _ in reader]
    assert owners == [(77, 0, 5_500_000_000), (0, 0, 0)]


def test_a_time_with_nothing_behind_it_is_nothing_that_is_missed() -> None:
    info = member("a")
    info.pax_headers = {"mtime": "5.5"}
    reader = OwnerTarReader(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT)[:1024] + bytes(1024)))
    assert list(reader) == []
