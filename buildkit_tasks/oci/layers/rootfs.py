"""A root file system as a tree of nodes, and path look-up in it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.packed_names import PackedNames
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = [
    "DEFAULT_PATH",
    "LATE_OPAQUE",
    "OPAQUE_ROOT",
    "OPAQUE_WHITEOUT",
    "WHITEOUT_PREFIX",
    "FileNode",
    "FileType",
    "ResolvedPath",
    "RootFs",
    "check_not_hidden",
    "hard_link_error",
    "iter_names",
    "iter_nodes",
    "own_entry_hidden",
    "printable_path",
    "resolve_path",
    "split_path",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Docker's default
_MAX_SYMLINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
WHITEOUT_PREFIX = ".wh."
OPAQUE_WHITEOUT = ".wh..wh..opq"
OPAQUE_ROOT = "an opaque whiteout of the root directory, which overlayfs ignores"
LATE_OPAQUE = "an opaque whiteout after directories that it removes in a lowest layer only"


class FileType(enum.Enum):
    """The type of a node.

    ``OTHER`` is a device or a FIFO. ``WHITEOUT`` is a whiteout in the tree of a layer; its name there begins
    with a slash, since a directory of the same layer may have the name without it.
    """

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    WHITEOUT = "whiteout"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNode:
    """One name of a root file system.

    ``head`` is the start of an executable file, ``binary`` the headers of an ELF file, ``binary_error``
    why they cannot be parsed. A directory without an entry of its own is ``is_implied``. In a directory
    ``children`` are the nodes of which more is recorded than name, mode and link target; ``packed_names``
    has the other names, one list for each layer, lowest first. A name that is in both is the child.
    """

    type: FileType
    mode: int = 0o755
    size: int = 0
    target: str = ""
    head: bytes = b""
    layer: str = ""
    binary: Binary | None = None
    binary_error: str = ""
    is_implied: bool = False
    children: dict[str, FileNode] = field(default_factory=lambda: _NO_CHILDREN, compare=False)
    packed_names: list[PackedNames] = field(default_factory=lambda: _NO_PACKED_NAMES, compare=False)

    @classmethod
    def make_directory(cls, layer: str = "", mode: int | None = None) -> FileNode:
        """Return an empty directory; without a mode one that entries below it imply."""
        return cls(
            type=FileType.DIRECTORY, mode=0o755 if mode is None else mode, layer=layer,
            is_implied=mode is None, children={}, packed_names=[],
        )  # fmt: skip

    def set_mode(self, mode: int) -> None:
        """Change the mode of a file, under all of its names; engines give it that of its last hard link."""
        object.__setattr__(self, "mode", mode)


# Shared by all nodes that are not directories, and never changed.
_NO_CHILDREN: dict[str, FileNode] = {}
_NO_PACKED_NAMES: list[PackedNames] = []


class ResolvedPath(NamedTuple):
    """The path of a node, with symbolic links resolved."""

    path: str
    node: FileNode

    @property
    def is_executable(self) -> bool:
        """Return True if the file has an execute bit."""
        return bool(self.node.mode & 0o111)


def resolve_path(
    root: FileNode, path: str, *, follow_last: bool = True, make_missing: bool = False
) -> ResolvedPath | None:
    """Resolve a path inside ``root``, as if chrooted there: absolute links and ``..`` do not leave it.

    Return None if a component is missing or is not a directory, or if more than 40 symbolic links are
    met. ``follow_last`` follows a link in the last component too; ``make_missing`` creates missing
    components as directories.
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


def split_path(path: str) -> tuple[str, str]:
    """Split a path that ends in a slash or a dot into parent and name; the name of the root is empty."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[-1] == "..":
        raise MalformedImage(f"the entry {path!r} leads out of its directory")
    return "/".join(parts[:-1]), parts[-1] if parts else ""


def printable_path(path: str) -> str:
    """Escape bytes that are not UTF-8, which reports cannot contain."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _find_child(directory: FileNode, name: str, *, make_missing: bool) -> FileNode | None:
    child = directory.children.get(name) or _unpack_node(directory, name)
    if child is None and make_missing:
        check_not_hidden(directory, name)
        child = directory.children[name] = FileNode.make_directory(directory.layer)
    return child


def check_not_hidden(directory: FileNode, name: str) -> None:
    """Raise :class:`MalformedImage` if the layer also hides a name at which it creates a directory."""
    if f"/{WHITEOUT_PREFIX}{name}" in directory.children:
        raise MalformedImage(f"a layer has {own_entry_hidden(name)}")


def hard_link_error(name: str, target: str) -> str:
    """Return the error for a hard link without a target in its layer."""
    return f"the entry {name!r} is a hard link to {target!r}, which is not a file of the same layer"


def own_entry_hidden(name: str) -> str:
    """Describe a layer that both has and hides a name.

    The OCI image specification lets the entry stay; in containerd it depends on the order and on the type.
    """
    return f"an entry {name!r}, or one below it, and a whiteout of it"


def _unpack_node(directory: FileNode, name: str) -> FileNode | None:
    """Return the node of a packed name, from the uppermost layer that has it."""
    matches = (names.find(name) for names in reversed(directory.packed_names))
    entry = next((match for match in matches if match is not None), None)
    if entry is None:
        return None
    if entry.target is None:
        return FileNode(type=FileType.FILE, mode=entry.mode)
    return FileNode(type=FileType.SYMLINK, mode=entry.mode, target=entry.target)


def iter_nodes(root: FileNode) -> Iterator[tuple[str, FileNode]]:
    """Yield every node below a directory with its path; packed names are left out."""
    pending = [("", root)]
    while pending:
        prefix, directory = pending.pop()
        for name, node in directory.children.items():
            yield f"{prefix}/{name}", node
            if node.type is FileType.DIRECTORY:
                pending.append((f"{prefix}/{name}", node))


def iter_names(directory: FileNode) -> Iterator[tuple[str, FileNode | None]]:
    """Yield every name in a directory, at least once, with its node (None for a packed name)."""
    for names in directory.packed_names:
        yield from ((name, None) for name in names)
    yield from directory.children.items()


class RootFs:
    """The root file system of an image: names, types and the start of executables, not the contents."""

    def __init__(self, root: FileNode) -> None:
        self.root = root

    def resolve(self, path: str) -> ResolvedPath | None:
        """Resolve an absolute path; return None if it does not exist."""
        return resolve_path(self.root, path)

    def find_file_in(self, directory: str, node: FileNode, name: str) -> ResolvedPath | None:
        """Return the regular file of this name in the directory at that path; None without one."""
        child = _find_child(node, name, make_missing=False) if name else None
        if child is not None and child.type is FileType.SYMLINK:
            return self.find_file(f"{directory}/{name}")
        if child is None or child.type is not FileType.FILE:
            return None
        return ResolvedPath(printable_path(f"{directory.rstrip('/')}/{name}"), child)

    def find_file(self, path: str) -> ResolvedPath | None:
        """Return the regular file at an absolute path; None without one."""
        resolved = self.resolve(path)
        return resolved if resolved is not None and resolved.node.type is FileType.FILE else None

    def is_directory(self, path: str) -> bool:
        """Return True if there is a directory at an absolute path."""
        resolved = self.resolve(path)
        return resolved is not None and resolved.node.type is FileType.DIRECTORY
