"""Layers unpacked on disk against the plainest model: folders as dictionaries, links followed by hand."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.support.oci import one
from tests.unit.run.sandbox.test_unpack import Item, entry_of, erase, item, layer

HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"
OUT = "/OUT"  # stands for the path of what lies beside the root


class Bad(Exception):
    """What an image must not have."""


@dataclass(eq=False)
class Folder:
    children: dict[str, Node] = field(default_factory=dict)
    mode: int = 0o755


@dataclass(eq=False)
class File:
    data: bytes
    mode: int


@dataclass(eq=False)
class Fifo:
    mode: int


@dataclass(eq=False)
class Link:
    target: str


Node = Folder | File | Fifo | Link


class Model:
    """A root file system in memory; ``mine`` and ``whole`` are about the current layer."""

    def __init__(self) -> None:
        self.root = Folder()
        self.mine: set[tuple[Folder, str]] = set()
        self.whole: set[Folder] = set()

    def resolve(self, path: str, *, make: bool) -> Folder | None:  # noqa: C901 - in one place, to be read as one
        trail, todo, links = [self.root], path.split("/")[::-1], 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del trail[max(1, len(trail) - 1) :]
                continue
            child = trail[-1].children.get(name)
            if child is None and make:
                child = trail[-1].children[name] = self.new_folder()
            if child is None:
                return None
            if isinstance(child, Link):
                links += 1
                if links > 40:
                    raise Bad
                if child.target.startswith("/"):
                    del trail[1:]
                todo += child.target.split("/")[::-1]
            elif isinstance(child, Folder):
                trail.append(child)
            elif make:
                raise Bad
            else:
                return None
        return trail[-1]

    def new_folder(self) -> Folder:
        made = Folder()
        self.whole.add(made)
        return made

    def add_layer(self, items: list[Item], *, lowest: bool) -> None:
        self.mine, self.whole = set(), set(self.all_folders()) if lowest else set()
        for info, data in items:
            parts = [part for part in info.name.split("/") if part not in ("", ".")]
            if ".." in parts:
                raise Bad
            if parts and parts[-1].startswith(".wh."):
                self.whiteout("/".join(parts[:-1]), parts[-1][4:])
            elif parts and not any(part.startswith(".wh.") for part in parts):
                parent = self.resolve("/".join(parts[:-1]), make=True)
                assert parent is not None
                self.put(parent, parts[-1], info, data)
                self.mine.add((parent, parts[-1]))

    def all_folders(self) -> Iterator[Folder]:
        todo = [self.root]
        while todo:
            here = todo.pop()
            yield here
            todo += [child for child in here.children.values() if isinstance(child, Folder)]

    def put(self, parent: Folder, name: str, info: tarfile.TarInfo, data: bytes) -> None:
        old = parent.children.get(name)
        if info.type == tarfile.DIRTYPE:
            if not isinstance(old, Folder):
                old = parent.children[name] = self.new_folder()
            old.mode = info.mode & 0o1777
        elif info.type == tarfile.LNKTYPE:
            if self.file(info.linkname) is not old:
                parent.children.pop(name, None)
                parent.children[name] = self.file(info.linkname)
        elif info.type == tarfile.CHRTYPE:
            parent.children.pop(name, None)
        elif info.type == tarfile.SYMTYPE:
            if not info.linkname:
                raise Bad
            parent.children[name] = Link(info.linkname)
        elif info.type == tarfile.FIFOTYPE:
            parent.children[name] = Fifo(info.mode & 0o777)
        else:
            parent.children[name] = File(data, info.mode & 0o777)

    def file(self, path: str) -> Node:
        folder, _, name = path.rpartition("/")
        parent = self.resolve(folder, make=False)
        found = parent and parent.children.get(name)
        if found is None or isinstance(found, Folder):
            raise Bad
        return found

    def whiteout(self, folder: str, hidden: str) -> None:
        if hidden in ("", ".", ".."):
            raise Bad
        if any(part.startswith(".wh.") for part in folder.split("/")):
            return
        parent = self.resolve(folder, make=False)
        if parent is None or parent in self.whole:
            return
        if hidden == ".wh..opq":
            self.hide(parent)
        elif hidden in parent.children:
            self.hide_one(parent, hidden)

    def hide(self, folder: Folder) -> None:
        for name in list(folder.children):
            self.hide_one(folder, name)
        self.whole.add(folder)

    def hide_one(self, parent: Folder, name: str) -> None:
        child = parent.children[name]
        if isinstance(child, Folder):
            if child in self.whole:
                return
            self.hide(child)
            if child.children or any(folder is child for folder, _ in self.mine):
                return
        if (parent, name) not in self.mine:
            del parent.children[name]

    def complete(self) -> None:
        for name, mode in (("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("tmp", 0o1777)):
            if not isinstance(self.root.children.get(name), Folder):
                self.root.children[name] = Folder(mode=mode)
        try:
            etc = self.resolve("etc", make=True)
        except Bad:
            return
        assert etc is not None
        hosts = etc.children.get("hosts")
        if hosts is None or (isinstance(hosts, File) and not hosts.data):
            etc.children["hosts"] = File(HOSTS, 0o644)

    def listing(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        todo: list[tuple[str, Folder]] = [("", self.root)]
        while todo:
            prefix, folder = todo.pop()
            for name, node in folder.children.items():
                path = f"{prefix}{name}"
                if isinstance(node, Folder):
                    found[path] = ("folder", node.mode)
                    todo.append((f"{path}/", node))
                elif isinstance(node, File):
                    found[path] = ("file", node.data, node.mode)
                else:
                    found[path] = ("link", node.target) if isinstance(node, Link) else ("fifo", node.mode)
        return found

    def names_of_files(self) -> Counter[frozenset[str]]:
        """Which names are one file."""
        found: dict[File | Fifo, set[str]] = {}
        todo: list[tuple[str, Folder]] = [("", self.root)]
        while todo:
            prefix, folder = todo.pop()
            for name, node in folder.children.items():
                if isinstance(node, Folder):
                    todo.append((f"{prefix}{name}/", node))
                elif isinstance(node, File | Fifo):
                    found.setdefault(node, set()).add(f"{prefix}{name}")
        return Counter(map(frozenset, found.values()))


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        name, about = str(path.relative_to(root)), path.lstat()
        mode = stat.S_IMODE(about.st_mode)
        if stat.S_ISLNK(about.st_mode):
            found[name] = ("link", os.readlink(path))  # noqa: PTH115 - as it is written
        elif stat.S_ISDIR(about.st_mode):
            found[name] = ("folder", mode)
        elif stat.S_ISFIFO(about.st_mode):
            found[name] = ("fifo", mode)
        else:
            path.chmod(0o600)
            found[name] = ("file", path.read_bytes(), mode)
            path.chmod(mode)
    return found


def names_of_files(root: Path) -> Counter[frozenset[str]]:
    found: dict[int, set[str]] = {}
    for path in root.rglob("*"):
        if not path.is_symlink() and not path.is_dir():
            found.setdefault(path.stat().st_ino, set()).add(str(path.relative_to(root)))
    return Counter(map(frozenset, found.values()))


@contextmanager
def a_place() -> Iterator[Path]:
    """A folder for a root, with something beside it that nobody may touch."""
    place = Path(tempfile.mkdtemp(prefix="unpacking-"))
    for name in ("out/a", "out/b", "a", "etc"):
        (place / name).mkdir(parents=True)
    for name in ("out/x", "out/a/x", "a/b", "etc/hosts"):
        (place / name).write_bytes(b"")
    try:
        yield place
    finally:
        erase(place)


def around(place: Path) -> dict[str, tuple[int, ...]]:
    """Everything outside of the root, and what would change if it were touched."""
    found: dict[str, tuple[int, ...]] = {}
    for path in place.rglob("*"):
        name = path.relative_to(place)
        if name.parts[0] != "root":
            about = path.lstat()
            found[str(name)] = (
                about.st_mode, about.st_ino, about.st_nlink, about.st_size, about.st_uid,
                about.st_mtime_ns, about.st_ctime_ns,
            )  # fmt: skip
    return found


names = st.sampled_from(["a", "b", "c", "l", "etc", "tmp"])
odd = st.sampled_from([".", "", "..", "hosts", "out", ".wh.a"])
parts = st.lists(st.integers(0, 11).flatmap(lambda n: odd if n == 0 else names), min_size=1, max_size=4)
paths = st.tuples(st.sampled_from(["", "", "", "./", "/"]), parts.map("/".join)).map("".join)
hidden = st.sampled_from(["a", "b", "c", "l", "etc", ".wh..opq", ".wh..opq", ".wh.x", ""])
whiteouts = st.tuples(st.lists(names, max_size=2), hidden).map(
    lambda each: "/".join([*each[0], f".wh.{each[1]}"])
)
targets = st.tuples(
    st.sampled_from(["", "", "/", "../", "../../..", "/../", f"{OUT}/", f"{OUT}/../"]), parts.map("/".join)
).map("".join)
modes = st.sampled_from([0o755, 0o644, 0, 0o7777, 0o500, 0o1777])
data = st.sampled_from([b"", b"1", b"22"])

items = st.one_of(
    st.tuples(paths, modes, data).map(lambda x: item(x[0], data=x[2], mode=x[1])),
    st.tuples(paths, modes, data).map(lambda x: item(x[0], data=x[2], mode=x[1])),
    st.tuples(paths, modes).map(lambda x: item(x[0], tarfile.DIRTYPE, mode=x[1])),
    st.tuples(paths, targets).map(lambda x: item(x[0], tarfile.SYMTYPE, link=x[1])),
    st.tuples(paths, targets | paths).map(lambda x: item(x[0], tarfile.LNKTYPE, link=x[1])),
    st.tuples(paths, modes).map(lambda x: item(x[0], tarfile.FIFOTYPE, mode=x[1])),
    paths.map(lambda x: item(x, tarfile.CHRTYPE)),
    whiteouts.map(item),
)
# Those that fail at nothing, so that long sequences come to their end.
tame = st.one_of(
    st.tuples(st.lists(names, min_size=1, max_size=3).map("/".join), data).map(
        lambda x: item(x[0], data=x[1])
    ),
    st.lists(names, min_size=1, max_size=3).map("/".join).map(lambda x: item(x, tarfile.DIRTYPE)),
    whiteouts.filter(lambda x: not x.endswith(".wh.")).map(item),
)
layers = st.lists(st.lists(items, max_size=8) | st.lists(tame | items, max_size=12), min_size=1, max_size=4)


def modelled(stack: list[list[Item]]) -> Model | None:
    model = Model()
    try:
        for number, found in enumerate(stack):
            model.add_layer(found, lowest=number == 0)
    except Bad:
        return None
    model.complete()
    return model


def moved(info: tarfile.TarInfo, place: Path) -> tarfile.TarInfo:
    """The same entry with the real path of what is outside."""
    if info.linkname.startswith(OUT):
        info = tarfile.TarInfo.frombuf(info.tobuf(tarfile.GNU_FORMAT), "utf-8", "surrogateescape")
        info.linkname = info.linkname.replace(OUT, str(place / "out"), 1)
    return info


def check(stack: list[list[Item]]) -> None:
    with a_place() as place:
        stack = [[(moved(info, place), held) for info, held in found] for found in stack]
        expected, before = modelled(stack), around(place)
        source = one([layer(*found) for found in stack])
        try:
            unpack(source, entry_of(source), place / "root")
        except MalformedImage:
            event("refused")
            assert expected is None
            assert not os.path.lexists(place / "root")
        else:
            event("unpacked")
            assert expected is not None
            assert listing(place / "root") == expected.listing()
            assert names_of_files(place / "root") == expected.names_of_files()
        assert around(place) == before


def planted(*stack: list[Item]) -> list[list[Item]]:
    return list(stack)


@settings(max_examples=300, deadline=None)
@given(layers)
@example(planted([item("l", tarfile.SYMTYPE, link=OUT), item("l/x", data=b"1")]))
@example(
    planted([item("l", tarfile.SYMTYPE, link="../../out")], [item("l/x", data=b"1"), item("l/.wh..wh..opq")])
)
@example(planted([item("l", tarfile.SYMTYPE, link=f"{OUT}/x"), item("l", data=b"1")]))
@example(planted([item("l", tarfile.SYMTYPE, link=f"{OUT}/x"), item("h", tarfile.LNKTYPE, link="l/x")]))
@example(planted([item("l", tarfile.SYMTYPE, link="../out")], [item("l/.wh.x"), item(".wh.l")]))
@example(planted([item("a/b", data=b"1")], [item("a/c"), item(".wh.a"), item("a/.wh..wh..opq"), item("a/b")]))
def test_layers_on_disk_are_what_the_plain_model_says_and_nothing_outside_is_touched(
    stack: list[list[Item]],
) -> None:
    check(stack)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(tame, min_size=2, max_size=15), min_size=2, max_size=4))
def test_whiteouts_on_disk_are_what_the_plain_model_says(stack: list[list[Item]]) -> None:
    check(stack)
