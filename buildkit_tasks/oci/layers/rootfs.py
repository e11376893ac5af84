"""A root file system as a tree of names: what layers hold, and where a command leads."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.packed_names import PackedNames
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = [
    "DEFAULT_PATH",
    "WHITEOUT_PREFIX",
    "FileNode",
    "FileType",
    "ResolvedPath",
    "RootFs",
    "iter_names",
    "iter_nodes",
    "printable_path",
    "resolve_path",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker sets it
_MAX_SYMLINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
WHITEOUT_PREFIX = ".wh."


class FileType(enum.Enum):
    """What a name is; ``HARD_LINK`` is one to a lower layer's file, ``OTHER`` devices, FIFOs, whiteouts."""

    FILE = "file"
    DIRECTORY = "folder"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNode:
    """One name of a root file system.

    ``head`` is the start of a script or of another file that may be run, ``binary`` what an ELF file
    says of itself, ``flaw`` why it cannot be read. In a folder ``children`` are the names about which
    more is known than that they are files or links, and ``plain`` the others, as each layer brought
    them; a name that is among both is the child.
    """

    type: FileType
    mode: int = 0o755
    size: int = 0
    target: str = ""
    head: bytes = b""
    layer: str = ""
    binary: Binary | None = None
    binary_error: str = ""
    children: dict[str, FileNode] = field(default_factory=lambda: _NO_CHILDREN, compare=False)
    packed_names: list[PackedNames] = field(default_factory=lambda: _NO_PACKED_NAMES, compare=False)

    @classmethod
    def make_directory(cls, layer: str = "", mode: int = 0o755) -> FileNode:
        """A folder with nothing in it yet."""
        return cls(type=FileType.DIRECTORY, mode=mode, layer=layer, children={}, packed_names=[])


# Of everything that is no folder: shared, and never changed.
_NO_CHILDREN: dict[str, FileNode] = {}
_NO_PACKED_NAMES: list[PackedNames] = []


class ResolvedPath(NamedTuple):
    """Where a path led, every symbolic link resolved."""

    path: str
    node: FileNode


def resolve_path(
    root: FileNode, path: str, *, follow_last: bool = True, make_missing: bool = False
) -> ResolvedPath | None:
    """Follow a path from ``root`` and never out of it; symbolic links count as if chrooted there.

    None if a name is missing, a file stands where a folder should, or there are more than 40
    links. ``follow`` also follows the last name; ``make`` makes missing folders.
    """
    resolved, pending, symlink_count = [("", root)], path.split("/")[::-1], 0
    while pending:
        name = pending.pop()
        if name == "..":
            del resolved[max(len(resolved) - 1, 1) :]
        if name in ("", ".", ".."):
            continue
        parent = resolved[-1][1]
        if parent.type is not FileType.DIRECTORY:
            return None
        child = _find_child(parent, name, make_missing=make_missing)
        if child is None or symlink_count > _MAX_SYMLINKS:
            return None
        if child.type is FileType.SYMLINK and (pending or follow_last):
            symlink_count += 1
            del resolved[1 if child.target.startswith("/") else len(resolved) :]
            pending += child.target.split("/")[::-1]
        else:
            resolved.append((name, child))
    return ResolvedPath(printable_path("/".join(name for name, _ in resolved)) or "/", resolved[-1][1])


def printable_path(path: str) -> str:
    """Write bytes that are no UTF-8 as escapes: reports carry the path."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _find_child(directory: FileNode, name: str, *, make_missing: bool) -> FileNode | None:
    child = directory.children.get(name) or _unpack_node(directory, name)
    if child is None and make_missing:
        child = directory.children[name] = FileNode.make_directory(directory.layer)
    return child


def _unpack_node(directory: FileNode, name: str) -> FileNode | None:
    """A file or a link of which only that is kept: the uppermost layer's."""
    matches = (names.find(name) for names in reversed(directory.packed_names))
    entry = next((match for match in matches if match is not None), None)
    if entry is None:
        return None
    if entry.target is None:
        return FileNode(type=FileType.FILE, mode=entry.mode)
    return FileNode(type=FileType.SYMLINK, mode=entry.mode, target=entry.target)


def iter_nodes(root: FileNode) -> Iterator[tuple[str, FileNode]]:
    """Everything below a folder about which more is known than its name, with its path."""
    pending = [("", root)]
    while pending:
        prefix, directory = pending.pop()
        for name, node in directory.children.items():
            yield f"{prefix}/{name}", node
            if node.type is FileType.DIRECTORY:
                pending.append((f"{prefix}/{name}", node))


def iter_names(directory: FileNode) -> Iterator[tuple[str, FileNode | None]]:
    """Every name in a folder, each at least once, with what is known of it beyond being there."""
    for names in directory.packed_names:
        yield from ((name, None) for name in names)
    yield from directory.children.items()


class RootFs:
    """What a container of the image would see as its root, as far as names and heads go."""

    def __init__(self, root: FileNode) -> None:
        self.root = root

    def resolve(self, path: str) -> ResolvedPath | None:
        """Where an absolute path leads, following symbolic links inside the root."""
        return resolve_path(self.root, path)

    def find_command(
        self, name: str, path_env: str = DEFAULT_PATH, working_dir: str = "/"
    ) -> ResolvedPath | None:
        """Find the file that starting ``name`` would run.

        With a slash it is that path, else the first executable of that name in ``path_env``.
        """
        if "/" in name:
            resolved = self.resolve(name if name.startswith("/") else f"{working_dir}/{name}")
            return resolved if resolved is not None and resolved.node.type is FileType.FILE else None
        for directory in path_env.split(":"):
            resolved = self.resolve(f"{directory}/{name}") if directory.startswith("/") else None
            if resolved is not None and resolved.node.type is FileType.FILE and resolved.node.mode & 0o111:
                return resolved
        return None
