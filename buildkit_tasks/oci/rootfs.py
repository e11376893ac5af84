"""A root file system as a tree of names: what layers hold, and where a command leads.

Overlaying follows the OCI image specification, "Image Layer Filesystem Changeset": each layer is a
tree of its own, laid over the ones below as overlayfs would.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["DEFAULT_PATH", "Found", "Node", "NodeType", "RootFs", "lay_over", "walk"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker sets it
_MAX_LINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


class NodeType(enum.Enum):
    """What a name is; ``OTHER`` are devices, FIFOs and whiteouts."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One name of a root file system; ``head`` is a regular file's first bytes."""

    type: NodeType
    mode: int = 0o755
    size: int = 0
    target: str = ""
    head: bytes = b""
    layer: str = ""
    children: dict[str, Node] = field(default_factory=dict, compare=False)


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
    return Found(_printable("/".join(name for name, _ in trail)) or "/", trail[-1][1])


def _printable(path: str) -> str:
    """Write bytes that are no UTF-8 as escapes: reports carry the path."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _child(folder: Node, name: str, *, make: bool) -> Node | None:
    child = folder.children.get(name)
    if child is None and make:
        child = folder.children[name] = Node(type=NodeType.FOLDER, layer=folder.layer)
    return child


def lay_over(lower: Node, upper: Node) -> None:
    """Lay the tree of one layer over ``lower``, which is changed; ``upper`` stays as it is.

    A whiteout ``.wh.NAME`` removes the name below and an opaque folder everything below in it;
    neither touches what its own layer adds. Folders merge, everything else replaces.
    """
    todo = [(lower.children, upper.children)]
    while todo:
        below, above = todo.pop()
        _whiten(below, above)
        for name, node in above.items():
            if name.startswith(_WHITEOUT):
                continue
            if node.type is NodeType.FOLDER:
                merged = dataclasses.replace(node, children=_folder_at(below, name))
                todo.append((merged.children, node.children))
                below[name] = merged
            else:
                below[name] = node


def _whiten(below: dict[str, Node], above: dict[str, Node]) -> None:
    if _OPAQUE in above:
        below.clear()
    for name in above:
        if name.startswith(_WHITEOUT):
            below.pop(name.removeprefix(_WHITEOUT), None)


def _folder_at(children: dict[str, Node], name: str) -> dict[str, Node]:
    old = children.get(name)
    return old.children if old is not None and old.type is NodeType.FOLDER else {}


class RootFs:
    """What a container of the image would see as its root, as far as names and heads go."""

    def __init__(self) -> None:
        self.root = Node(type=NodeType.FOLDER)

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
