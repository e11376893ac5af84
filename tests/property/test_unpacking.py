"""Unpacked layers equal a simple model: directories are dictionaries, and links are resolved step by step."""

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
    tar_entry,
    walk_closed,
)

EXAMPLES = settings().max_examples
HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"
OUTSIDE = "/OUT"  # stands for the path of a directory beside the root


class Malformed(Exception):
    """The image is malformed."""


@dataclass(eq=False)
class Directory:
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


Node = Directory | File | Fifo | Link


class Model:
    """A root file system in memory. ``own`` and ``owned`` are the current layer's entries and directories."""

    def __init__(self) -> None:
        self.root = Directory()
        self.own: set[tuple[Directory, str]] = set()
        self.owned: set[Directory] = set()

    def resolve(self, path: str, *, create: bool) -> Directory | None:  # noqa: C901 - path_resolution(7)
        trail, pending, links = [self.root], path.split("/")[::-1], 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del trail[max(1, len(trail) - 1) :]
                continue
            child = trail[-1].children.get(name)
            if child is None and create:
                child = trail[-1].children[name] = self.new_directory()
            if child is None:
                return None
            if isinstance(child, Link):
                links += 1
                if links > 40:
                    raise Malformed
                if child.target.startswith("/"):
                    del trail[1:]
                pending += child.target.split("/")[::-1]
            elif isinstance(child, Directory):
                trail.append(child)
            elif create:
                raise Malformed
            else:
                return None
        return trail[-1]

    def new_directory(self) -> Directory:
        directory = Directory()
        self.owned.add(directory)
        return directory

    def apply_layer(self, entries: list[Entry], *, lowest: bool) -> None:
        self.own, self.owned = set(), set(self.all_directories()) if lowest else set()
        for info, data in entries:
            parts = [part for part in info.name.split("/") if part not in ("", ".")]
            if ".." in parts:
                raise Malformed
            if parts and parts[-1].startswith(".wh."):
                self.apply_whiteout("/".join(parts[:-1]), parts[-1][4:])
            elif parts and not any(part.startswith(".wh.") for part in parts):
                parent = self.resolve("/".join(parts[:-1]), create=True)
                assert parent is not None
                self.write(parent, parts[-1], info, data)
                self.own.add((parent, parts[-1]))

    def all_directories(self) -> Iterator[Directory]:
        pending = [self.root]
        while pending:
            directory = pending.pop()
            yield directory
            pending += [child for child in directory.children.values() if isinstance(child, Directory)]

    def write(self, parent: Directory, name: str, info: tarfile.TarInfo, data: bytes) -> None:
        existing = parent.children.get(name)
        if info.type == tarfile.DIRTYPE:
            if not isinstance(existing, Directory):
                existing = parent.children[name] = self.new_directory()
            existing.mode = info.mode & 0o1777
        elif info.type == tarfile.LNKTYPE:
            if self.find_file(info.linkname) is not existing:
                parent.children.pop(name, None)
                parent.children[name] = self.find_file(info.linkname)
        elif info.type == tarfile.CHRTYPE:
            parent.children.pop(name, None)
        elif info.type == tarfile.SYMTYPE:
            if not info.linkname:
                raise Malformed
            parent.children[name] = Link(info.linkname)
        elif info.type == tarfile.FIFOTYPE:
            parent.children[name] = Fifo(info.mode & 0o777)
        else:
            parent.children[name] = File(data, info.mode & 0o777)

    def find_file(self, path: str) -> Node:
        directory, _, name = path.rpartition("/")
        parent = self.resolve(directory, create=False)
        node = parent and parent.children.get(name)
        if node is None or isinstance(node, Directory):
            raise Malformed
        return node

    def apply_whiteout(self, directory: str, target: str) -> None:
        if target in ("", ".", ".."):
            raise Malformed
        if any(part.startswith(".wh.") for part in directory.split("/")):
            return
        parent = self.resolve(directory, create=False)
        if parent is None or parent in self.owned:
            return
        if target == ".wh..opq":
            self.apply_opaque(parent)
        elif target in parent.children:
            self.hide_child(parent, target)

    def apply_opaque(self, directory: Directory) -> None:
        for name in list(directory.children):
            self.hide_child(directory, name)
        self.owned.add(directory)

    def hide_child(self, parent: Directory, name: str) -> None:
        child = parent.children[name]
        if isinstance(child, Directory):
            if child in self.owned:
                return
            self.apply_opaque(child)
            if child.children or any(directory is child for directory, _ in self.own):
                return
        if (parent, name) not in self.own:
            del parent.children[name]

    def add_default_entries(self) -> None:
        for name, mode in (("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("tmp", 0o1777)):
            if not isinstance(self.root.children.get(name), Directory):
                self.root.children[name] = Directory(mode=mode)
        try:
            etc = self.resolve("etc", create=True)
        except Malformed:
            return
        assert etc is not None
        hosts = etc.children.get("hosts")
        if hosts is None or (isinstance(hosts, File) and not hosts.data):
            etc.children["hosts"] = File(HOSTS, 0o644)

    def list_nodes(self) -> dict[str, tuple[object, ...]]:
        nodes: dict[str, tuple[object, ...]] = {}
        pending: list[tuple[str, Directory]] = [("", self.root)]
        while pending:
            prefix, directory = pending.pop()
            for name, node in directory.children.items():
                path = f"{prefix}{name}"
                if isinstance(node, Directory):
                    nodes[path] = ("directory", node.mode)
                    pending.append((f"{path}/", node))
                elif isinstance(node, File):
                    nodes[path] = ("file", node.data, node.mode)
                else:
                    nodes[path] = ("link", node.target) if isinstance(node, Link) else ("fifo", node.mode)
        return nodes

    def list_hard_links(self) -> Counter[frozenset[str]]:
        """Return the sets of names of one file."""
        names: dict[File | Fifo, set[str]] = {}
        pending: list[tuple[str, Directory]] = [("", self.root)]
        while pending:
            prefix, directory = pending.pop()
            for name, node in directory.children.items():
                if isinstance(node, Directory):
                    pending.append((f"{prefix}{name}/", node))
                elif isinstance(node, File | Fifo):
                    names.setdefault(node, set()).add(f"{prefix}{name}")
        return Counter(map(frozenset, names.values()))


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


names = st.sampled_from(["a", "b", "c", "l", "etc", "tmp"])
odd_names = st.sampled_from([".", "", "..", "hosts", "out", ".wh.a"])
parts = st.lists(st.integers(0, 11).flatmap(lambda n: odd_names if n == 0 else names), min_size=1, max_size=4)
paths = st.tuples(st.sampled_from(["", "", "", "./", "/"]), parts.map("/".join)).map("".join)
whiteout_targets = st.sampled_from(["a", "b", "c", "l", "etc", ".wh..opq", ".wh..opq", ".wh.x", ""])
whiteouts = st.tuples(st.lists(names, max_size=2), whiteout_targets).map(
    lambda each: "/".join([*each[0], f".wh.{each[1]}"])
)
targets = st.tuples(
    st.sampled_from(["", "", "/", "../", "../../..", "/../", f"{OUTSIDE}/", f"{OUTSIDE}/../"]),
    parts.map("/".join),
).map("".join)
modes = st.sampled_from([0o755, 0o644, 0, 0o7777, 0o500, 0o1777])
data = st.sampled_from([b"", b"1", b"22"])

entries = st.one_of(
    st.builds(file, paths, data, mode=modes),
    st.builds(file, paths, data, mode=modes),
    st.builds(directory, paths, mode=modes),
    st.builds(symlink, paths, targets),
    st.builds(hard_link, paths, targets | paths),
    st.builds(tar_entry, paths, st.just(tarfile.FIFOTYPE), mode=modes),
    st.builds(tar_entry, paths, st.just(tarfile.CHRTYPE)),
    st.builds(file, whiteouts),
)
# Entries that are never malformed, so that long sequences are unpacked to the end.
valid_paths = st.lists(names, min_size=1, max_size=3).map("/".join)
valid_entries = st.one_of(
    st.builds(file, valid_paths, data),
    st.builds(directory, valid_paths),
    st.builds(file, whiteouts.filter(lambda path: not path.endswith(".wh."))),
)
images = st.lists(
    st.lists(entries, max_size=8) | st.lists(valid_entries | entries, max_size=12), min_size=1, max_size=4
)


def build_model(layers: list[list[Entry]]) -> Model | None:
    model = Model()
    try:
        for number, entries in enumerate(layers):
            model.apply_layer(entries, lowest=number == 0)
    except Malformed:
        return None
    model.add_default_entries()
    return model


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
            assert expected is None
            assert not os.path.lexists(parent / "root")
        else:
            event("unpacked")
            assert expected is not None
            assert list_nodes(parent / "root") == expected.list_nodes()
            assert list_hard_links(parent / "root") == expected.list_hard_links()
        assert stat_outside(parent) == before


@settings(max_examples=3 * EXAMPLES)
@given(images)
@example([[symlink("l", OUTSIDE), file("l/x", b"1")]])
@example([[symlink("l", "../../out")], [file("l/x", b"1"), file("l/.wh..wh..opq")]])
@example([[symlink("l", f"{OUTSIDE}/x"), file("l", b"1")]])
@example([[symlink("l", f"{OUTSIDE}/x"), hard_link("h", "l/x")]])
@example([[symlink("l", "../out")], [file("l/.wh.x"), file(".wh.l")]])
@example([[file("a"), directory("etc", mode=0)]])
@example([[file("a/b", b"1")], [file("a/c"), file(".wh.a"), file("a/.wh..wh..opq"), file("a/b")]])
def test_unpacking_equals_model(layers: list[list[Entry]]) -> None:
    check_unpacking(layers)


@settings(max_examples=2 * EXAMPLES)
@given(st.lists(st.lists(valid_entries, min_size=2, max_size=15), min_size=2, max_size=4))
def test_whiteouts_equal_model(layers: list[list[Entry]]) -> None:
    check_unpacking(layers)
