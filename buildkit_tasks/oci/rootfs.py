"""A root file system as a tree of names: what layers hold, and where a command leads.

Overlaying follows the OCI image specification, "Image Layer Filesystem Changeset": each layer is a
tree of its own, laid over the ones below as overlayfs would.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from buildkit_tasks.binaries.elf import Binary

__all__ = [
    "DEFAULT_PATH",
    "Found",
    "Names",
    "Node",
    "NodeType",
    "RootFs",
    "files_of",
    "lay_over",
    "paths_of",
    "printable_path",
    "walk",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker sets it
_MAX_LINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MODES = [b"%03o" % mode for mode in range(0o1000)]
_DIGITS = 3


class NodeType(enum.Enum):
    """What a name is; ``HARD_LINK`` is one to a lower layer's file, ``OTHER`` devices, FIFOs, whiteouts."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    OTHER = "other"


class Names:
    """The names in one folder of files that are no program, packed: a layer may have millions.

    A record is three octal digits of the mode, the name, and a NUL.
    """

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes = b"") -> None:
        self._packed = bytearray(packed)

    def add(self, name: str, mode: int) -> None:
        """Add a file's name and its permissions."""
        self._packed += b"%b%b\0" % (_MODES[mode & 0o777], name.encode("utf-8", "surrogateescape"))

    def mode(self, name: str) -> int | None:
        """The permissions of the file of that name, or None if there is none."""
        wanted, at = name.encode("utf-8", "surrogateescape") + b"\0", -1
        while (at := self._packed.find(wanted, at + 1)) >= 0:
            if at == _DIGITS or (at > _DIGITS and self._packed[at - _DIGITS - 1] == 0):
                return int(self._packed[at - _DIGITS : at], 8)
        return None

    def __iter__(self) -> Iterator[str]:
        for record in self._packed.split(b"\0")[:-1]:
            yield record[_DIGITS:].decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return self._packed.count(0)

    def without(self, names: Container[str]) -> Names:
        """The others."""
        kept = (
            record
            for record in self._packed.split(b"\0")[:-1]
            if record[_DIGITS:].decode("utf-8", "surrogateescape") not in names
        )
        return Names(b"".join(record + b"\0" for record in kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One name of a root file system.

    ``head`` is the start of a script or of another file that may be run, ``binary`` what an ELF file
    says of itself, ``flaw`` why it cannot be read. In a folder ``children`` are the names about which
    more is known than that they are files, and ``plain`` the others, as each layer brought them.
    """

    type: NodeType
    mode: int = 0o755
    size: int = 0
    target: str = ""
    head: bytes = b""
    layer: str = ""
    binary: Binary | None = None
    flaw: str = ""
    children: dict[str, Node] = field(default_factory=lambda: _NO_CHILDREN, compare=False)
    plain: list[Names] = field(default_factory=lambda: _NO_NAMES, compare=False)

    @classmethod
    def folder(cls, layer: str = "", mode: int = 0o755) -> Node:
        """A folder with nothing in it yet."""
        return cls(type=NodeType.FOLDER, mode=mode, layer=layer, children={}, plain=[])


# Of everything that is no folder: shared, and never changed.
_NO_CHILDREN: dict[str, Node] = {}
_NO_NAMES: list[Names] = []


class Found(NamedTuple):
    """Where a path led, every symbolic link resolved."""

    path: str
    node: Node


def walk(root: Node, path: str, *, follow: bool = True, make: bool = False) -> Found | None:
    """Follow a path from ``root`` and never out of it; symbolic links count as if chrooted there.

    None if a name is missing, a file stands where a folder should, or there are more than 40
    links. ``follow`` also follows the last name; ``make`` makes missing folders.
    """
    trail, todo, links = [("", root)], path.split("/")[::-1], 0
    while todo:
        name = todo.pop()
        if name == "..":
            del trail[max(len(trail) - 1, 1) :]
        if name in ("", ".", ".."):
            continue
        here = trail[-1][1]
        if here.type is not NodeType.FOLDER:
            return None
        child = _child(here, name, make=make)
        if child is None or links > _MAX_LINKS:
            return None
        if child.type is NodeType.SYMLINK and (todo or follow):
            links += 1
            del trail[1 if child.target.startswith("/") else len(trail) :]
            todo += child.target.split("/")[::-1]
        else:
            trail.append((name, child))
    return Found(printable_path("/".join(name for name, _ in trail)) or "/", trail[-1][1])


def printable_path(path: str) -> str:
    """Write bytes that are no UTF-8 as escapes: reports carry the path."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _child(folder: Node, name: str, *, make: bool) -> Node | None:
    child = folder.children.get(name) or _plain_file(folder, name)
    if child is None and make:
        child = folder.children[name] = Node.folder(folder.layer)
    return child


def _plain_file(folder: Node, name: str) -> Node | None:
    modes = (names.mode(name) for names in reversed(folder.plain))
    mode = next((mode for mode in modes if mode is not None), None)
    return None if mode is None else Node(type=NodeType.FILE, mode=mode)


def lay_over(lower: Node, upper: Node) -> None:
    """Lay the tree of one layer over ``lower``, which is changed; ``upper`` stays as it is.

    A whiteout ``.wh.NAME`` removes the name below and an opaque folder everything below in it;
    neither touches what its own layer adds. Folders merge, everything else replaces.
    """
    todo = [(lower, upper)]
    while todo:
        below, above = todo.pop()
        _whiten(below, above)
        if below.children:
            for names in above.plain:
                for name in names:
                    below.children.pop(name, None)
        below.plain.extend(above.plain)
        for name, node in above.children.items():
            if name.startswith(_WHITEOUT):
                continue
            if node.type is NodeType.FOLDER:
                merged = _merged(below.children.get(name), node)
                todo.append((merged, node))
                below.children[name] = merged
            else:
                below.children[name] = node


def _whiten(below: Node, above: Node) -> None:
    if _OPAQUE in above.children:
        below.children.clear()
        below.plain.clear()
    gone = {name.removeprefix(_WHITEOUT) for name in above.children if name.startswith(_WHITEOUT)}
    for name in gone:
        below.children.pop(name, None)
    if gone and below.plain:
        below.plain[:] = [names.without(gone) for names in below.plain]


def _merged(old: Node | None, folder: Node) -> Node:
    """The upper folder with what the lower one holds, if that is one."""
    if old is None or old.type is not NodeType.FOLDER:
        return dataclasses.replace(folder, children={}, plain=[])
    return dataclasses.replace(folder, children=old.children, plain=old.plain)


def files_of(root: Node) -> Iterator[tuple[str, Node]]:
    """Everything below a folder about which more is known than its name, with its path."""
    todo = [("", root)]
    while todo:
        prefix, folder = todo.pop()
        for name, node in folder.children.items():
            yield f"{prefix}/{name}", node
            if node.type is NodeType.FOLDER:
                todo.append((f"{prefix}/{name}", node))


def paths_of(root: Node) -> Iterator[str]:
    """The path of everything in a file system, plain files included, each at least once."""
    todo = [("", root)]
    while todo:
        prefix, folder = todo.pop()
        for names in folder.plain:
            yield from (f"{prefix}/{name}" for name in names)
        for name, node in folder.children.items():
            yield f"{prefix}/{name}"
            if node.type is NodeType.FOLDER:
                todo.append((f"{prefix}/{name}", node))


class RootFs:
    """What a container of the image would see as its root, as far as names and heads go."""

    def __init__(self) -> None:
        self.root = Node.folder()

    def link(self, links: Iterable[tuple[str, str]]) -> None:
        """Put the files of lower layers where a layer has only hard links to them.

        Engines link in the file system as it is by then, whatever layer brought the file. Raises
        :class:`MalformedImage` for a target that is not there, or is a folder.
        """
        for path, target in links:
            found, place = walk(self.root, target, follow=False), walk(self.root, path, follow=False)
            if place is None or place.node.type is not NodeType.HARD_LINK:
                continue  # its own layer put something else there
            if found is None or found.node.type in (NodeType.FOLDER, NodeType.HARD_LINK):
                raise MalformedImage(f"{path!r} is a hard link to {target!r}, which is no file here")
            folder = walk(self.root, path.rstrip("/").rpartition("/")[0])
            if folder is not None:
                folder.node.children[path.rstrip("/").rpartition("/")[2]] = found.node

    def resolve(self, path: str) -> Found | None:
        """Where an absolute path leads, following symbolic links inside the root."""
        return walk(self.root, path)

    def find_command(self, name: str, path_env: str = DEFAULT_PATH, working_dir: str = "/") -> Found | None:
        """Find the file that starting ``name`` would run.

        With a slash it is that path, else the first executable of that name in ``path_env``.
        """
        if "/" in name:
            found = self.resolve(name if name.startswith("/") else f"{working_dir}/{name}")
            return found if found is not None and found.node.type is NodeType.FILE else None
        for folder in path_env.split(":"):
            found = self.resolve(f"{folder}/{name}") if folder.startswith("/") else None
            if found is not None and found.node.type is NodeType.FILE and found.node.mode & 0o111:
                return found
        return None
