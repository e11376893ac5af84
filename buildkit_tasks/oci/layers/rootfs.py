"""A root file system as a tree of names: what layers hold, and where a command leads."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.packed_names import Names
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = [
    "DEFAULT_PATH",
    "WHITEOUT",
    "Found",
    "Node",
    "NodeType",
    "RootFs",
    "files_of",
    "names_in",
    "printable_path",
    "walk",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker sets it
_MAX_LINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
WHITEOUT = ".wh."


class NodeType(enum.Enum):
    """What a name is; ``HARD_LINK`` is one to a lower layer's file, ``OTHER`` devices, FIFOs, whiteouts."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One name of a root file system.

    ``head`` is the start of a script or of another file that may be run, ``binary`` what an ELF file
    says of itself, ``flaw`` why it cannot be read. In a folder ``children`` are the names about which
    more is known than that they are files or links, and ``plain`` the others, as each layer brought
    them; a name that is among both is the child.
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
    child = folder.children.get(name) or _plain(folder, name)
    if child is None and make:
        child = folder.children[name] = Node.folder(folder.layer)
    return child


def _plain(folder: Node, name: str) -> Node | None:
    """A file or a link of which only that is kept: the uppermost layer's."""
    found = (names.find(name) for names in reversed(folder.plain))
    known = next((each for each in found if each is not None), None)
    if known is None:
        return None
    if known.target is None:
        return Node(type=NodeType.FILE, mode=known.mode)
    return Node(type=NodeType.SYMLINK, mode=known.mode, target=known.target)


def files_of(root: Node) -> Iterator[tuple[str, Node]]:
    """Everything below a folder about which more is known than its name, with its path."""
    todo = [("", root)]
    while todo:
        prefix, folder = todo.pop()
        for name, node in folder.children.items():
            yield f"{prefix}/{name}", node
            if node.type is NodeType.FOLDER:
                todo.append((f"{prefix}/{name}", node))


def names_in(folder: Node) -> Iterator[tuple[str, Node | None]]:
    """Every name in a folder, each at least once, with what is known of it beyond being there."""
    for names in folder.plain:
        yield from ((name, None) for name in names)
    yield from folder.children.items()


class RootFs:
    """What a container of the image would see as its root, as far as names and heads go."""

    def __init__(self, root: Node) -> None:
        self.root = root

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
