"""A simple model of an image's root file system.

Directories are dictionaries, and links are resolved step by step. Layers are unpacked each by itself, as
containerd does it, and merged as overlayfs does it.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.support.unpacking import Entry

__all__ = ["HOSTS", "Malformed", "Model", "Node", "build_model"]

HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"


class Malformed(Exception):
    """The image is malformed."""


@dataclass(eq=False)
class Directory:
    """A directory, of one layer or merged; one without an entry of its own has no mode.

    A merged one without an entry in its uppermost layer ``is_implied``.
    """

    children: dict[str, Node] = field(default_factory=dict)
    mode: int | None = None
    hidden: set[str] = field(default_factory=set)
    is_opaque: bool = False
    is_implied: bool = False


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


@dataclass(eq=False)
class Device:
    """A device: not created, but nothing else is at its name either."""


Node = Directory | File | Fifo | Link | Device


class Layer:
    """One layer as containerd unpacks it: by itself, before overlayfs merges it with the lower ones."""

    def __init__(self, lower: Directory | None, others: Sequence[Directory] = ()) -> None:
        self.root, self.lower, self.others, self.may_be_rejected = Directory(), lower, others, False

    def resolve(self, root: Directory, path: str, *, create: bool) -> Directory | None:
        trail, names, pending, links = [root], [""], path.split("/")[::-1], 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del trail[max(1, len(trail) - 1) :], names[len(trail) :]
                continue
            child = trail[-1].children.get(name)
            if (child is None or isinstance(child, Device)) and create:
                child = self.make_directory(trail[-1], name)
                self.may_be_rejected |= any(self.is_odd(other, [*names[1:], name]) for other in self.others)
            if isinstance(child, Link):
                links += 1
                if links > 40:
                    raise Malformed
                if child.target.startswith("/"):
                    del trail[1:], names[1:]
                pending += child.target.split("/")[::-1]
            elif isinstance(child, Directory):
                trail.append(child)
                names.append(name)
            elif create:
                raise Malformed
            else:
                return None
        return trail[-1]

    def make_directory(self, parent: Directory, name: str) -> Directory:
        if name in parent.hidden:
            raise Malformed
        child = parent.children.get(name)
        self.may_be_rejected |= child is not None and (self.lower is not None or isinstance(child, Device))
        parent.children[name] = directory = Directory()
        return directory

    def is_odd(self, other: Directory, names: Sequence[str]) -> bool:
        """Return True if containerd may fail to look for this path in another layer."""
        try:
            self.resolve(other, "/".join(names), create=False)
        except Malformed:
            return True
        return is_below_file(other, names[:-1])

    def has_lost_directory(self, entries: list[Entry]) -> bool:
        """Return True if the path of a directory entry leads nowhere, or through a link that may do so."""
        paths = (info.name.strip("./") for info, _ in entries if info.type == tarfile.DIRTYPE)
        return any(self.leads_nowhere(path) for path in paths)

    def leads_nowhere(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        try:
            directory = self.resolve(self.root, parent, create=False)
        except Malformed:
            return True
        return directory is None or isinstance(directory.children.get(name), Link | None)

    def merge(self) -> Directory:
        return merge(self.lower or Directory(), self.root)

    def add(self, info: tarfile.TarInfo, data: bytes) -> None:
        parts = [part for part in info.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Malformed
        if not parts:
            return
        if parts[-1] in (".wh.", ".wh..", ".wh..."):
            raise Malformed
        parent = self.resolve(self.root, "/".join(parts[:-1]), create=True)
        assert parent is not None
        if parts[-1] == ".wh..wh..opq":
            self.hide_all(parent)
        elif parts[-1].startswith(".wh."):
            self.hide(parent, parts[-1].removeprefix(".wh."))
        else:
            self.write(parent, parts[-1], info, data)

    def hide_all(self, directory: Directory) -> None:
        has_directories = any(isinstance(child, Directory) for child in directory.children.values())
        if self.lower is None and (directory.is_opaque or has_directories):
            raise Malformed
        if self.lower is not None and directory is self.root:
            raise Malformed
        directory.is_opaque = True

    def hide(self, directory: Directory, name: str) -> None:
        child = directory.children.get(name)
        self.may_be_rejected |= isinstance(child, Device)
        if self.lower is None:
            directory.children.pop(name, None)
        elif name in directory.hidden or not isinstance(child, Device | None):
            raise Malformed
        directory.hidden.add(name)

    def write(self, parent: Directory, name: str, info: tarfile.TarInfo, data: bytes) -> None:
        existing = parent.children.get(name)
        if info.type == tarfile.DIRTYPE:
            if not isinstance(existing, Directory):
                existing = self.make_directory(parent, name)
            existing.mode = info.mode & 0o1777
        elif info.type == tarfile.LNKTYPE:
            target_parent, target_name = self.find_file(info.linkname)
            if target_parent is parent and target_name == name:
                raise Malformed
            parent.children.pop(name, None)
            parent.children[name] = node = self.find_file(info.linkname)[0].children[target_name]
            if isinstance(node, File | Fifo):
                node.mode = info.mode & 0o777
        elif info.type == tarfile.CHRTYPE:
            parent.children[name] = Device()
        elif info.type == tarfile.SYMTYPE:
            if not info.linkname:
                raise Malformed
            parent.children[name] = Link(info.linkname)
        elif info.type == tarfile.FIFOTYPE:
            parent.children[name] = Fifo(info.mode & 0o777)
        else:
            parent.children[name] = File(data, info.mode & 0o777)

    def find_file(self, path: str) -> tuple[Directory, str]:
        """Return the directory and the name of a file of this layer."""
        directory, _, name = path.rpartition("/")
        parent = self.resolve(self.root, directory, create=False)
        node = parent and parent.children.get(name)
        if parent is None or isinstance(node, Directory | None):
            raise Malformed
        self.may_be_rejected |= isinstance(node, Device)
        return parent, name


def is_below_file(root: Directory, names: Sequence[str]) -> bool:
    """Return True if a layer has something else than a directory at this path or above it."""
    node: Node | None = root
    for name in names:
        if isinstance(node, Directory):
            if name in node.hidden:
                return True
            node = node.children.get(name)
    return not isinstance(node, Directory | None)


def merge(lower: Directory, upper: Directory) -> Directory:
    """Return what overlayfs shows: names of the upper directory and those that it does not hide."""
    children = {name: child for name, child in lower.children.items() if name not in upper.hidden}
    if upper.is_opaque:
        children = {}
    for name, child in upper.children.items():
        below = children.get(name)
        is_merged = isinstance(child, Directory) and isinstance(below, Directory)
        children[name] = merge(below, child) if is_merged else child  # type: ignore[arg-type]
    mode = lower.mode if upper.mode is None else upper.mode
    return Directory(children, mode, is_implied=upper.mode is None)


class Model:
    """A root file system in memory.

    It ``may_be_rejected`` if

    * a layer has a directory or a whiteout in the place of a device, which is not created;
    * an upper layer has a file and then a directory at one path: overlayfs shows what lower layers have in
      that directory, which the file has removed from the only tree of the sandbox;
    * an entry implies a directory where a lower layer has a file or a whiteout above it, or a link to itself,
      since containerd looks there for the mode of the directory;
    * a directory is gone at the end of its layer, when containerd sets its times;
    * the target of a hard link is a device, or is found through a link of a lower layer.
    """

    def __init__(self, layers: list[list[Entry]]) -> None:
        merged: Directory | None = None
        roots: list[Directory] = []
        self.may_be_rejected = False
        for entries in layers:
            layer = Layer(merged, roots)
            for info, data in entries:
                layer.add(info, data)
            self.may_be_rejected |= layer.may_be_rejected or layer.has_lost_directory(entries)
            merged = layer.merge()
            roots.append(layer.root)
        self.root = merged or Directory()

    def add_default_entries(self) -> None:
        for name, mode in (("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("tmp", 0o1777)):
            if not isinstance(self.root.children.get(name), Directory):
                self.root.children[name] = Directory(mode=mode)
        try:
            etc = Layer(None).resolve(self.root, "etc", create=True)
        except Malformed:
            return
        assert etc is not None
        hosts = etc.children.get("hosts")
        if isinstance(hosts, Device | None) or (isinstance(hosts, File) and not hosts.data):
            etc.children["hosts"] = File(HOSTS, 0o644)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield each path with its node."""
        pending: list[tuple[str, Directory]] = [("", self.root)]
        while pending:
            prefix, directory = pending.pop()
            for name, node in directory.children.items():
                yield f"{prefix}{name}", node
                if isinstance(node, Directory):
                    pending.append((f"{prefix}{name}/", node))

    def list_nodes(self) -> dict[str, tuple[object, ...]]:
        nodes: dict[str, tuple[object, ...]] = {}
        for path, node in self.walk():
            if isinstance(node, Directory):
                nodes[path] = ("directory", 0o755 if node.mode is None else node.mode)
            elif isinstance(node, File):
                nodes[path] = ("file", node.data, node.mode)
            elif not isinstance(node, Device):
                nodes[path] = ("link", node.target) if isinstance(node, Link) else ("fifo", node.mode)
        return nodes

    def list_implied(self) -> set[str]:
        """Return the directories that lack an entry in the uppermost layer that has them."""
        directories = [(path, node) for path, node in self.walk() if isinstance(node, Directory)]
        return {path for path, node in directories if node.is_implied or node.mode is None}

    def list_hard_links(self) -> Counter[frozenset[str]]:
        """Return the sets of names of one file."""
        names: dict[File | Fifo, set[str]] = {}
        for path, node in self.walk():
            if isinstance(node, File | Fifo):
                names.setdefault(node, set()).add(path)
        return Counter(map(frozenset, names.values()))


def build_model(layers: list[list[Entry]]) -> Model | None:
    try:
        model = Model(layers)
    except Malformed:
        return None
    model.add_default_entries()
    return model
