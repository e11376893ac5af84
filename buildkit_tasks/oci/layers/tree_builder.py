"""Build the tree of one layer from its archive; ELF files are parsed as their data passes."""

from __future__ import annotations

import posixpath
import re
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.packed_names import PackedNames
from buildkit_tasks.oci.layers.rootfs import (
    LATE_OPAQUE,
    OPAQUE_ROOT,
    OPAQUE_WHITEOUT,
    WHITEOUT_PREFIX,
    FileNode,
    FileType,
    check_not_hidden,
    hard_link_error,
    own_entry_hidden,
    resolve_path,
    split_path,
)
from buildkit_tasks.oci.layers.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, TarEntry, is_tar_header
from buildkit_tasks.platforms.elf.isa_check import STREAM_MAGICS, STREAM_WINDOW_SIZE
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC, read_binary
from buildkit_tasks.platforms.elf.view import FileView, PartialFile, WholeFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.limits import Limits

__all__ = ["MAX_LOADER_CONFIG", "EntryReader", "TreeBuilder", "read_windows"]

_HEAD_SIZE = 512  # an ELF header and its first program headers, a `#!` line, or a tar header
_SHORT_HEAD_SIZE = 64  # of other executable files, to describe what they are
_EXECUTABLE_BITS = 0o111
_MAX_HEADS = 20_000  # executable files of which the head is kept
_FILE_TYPES = frozenset([REGULAR, "7"])
# The configuration of dynamic loaders: the directories that they search for libraries.
_LOADER_CONFIG = re.compile(r"(?:\./)?etc/(?:ld\.so\.conf(?:\.d/[^/]+\.conf)?|ld-musl-[^/]+\.path)")
MAX_LOADER_CONFIG = 64 << 10  # bytes
_NO_DIRECTORY = "\0"  # not a possible path

# Of a larger executable only both ends and the surroundings of magic numbers are kept.
_FRONT_SIZE, _BACK_SIZE = 16 << 20, 4 << 20
_CHUNK_SIZE = 1 << 20
_MAGIC_LEAD = 16  # bytes before a magic number that belong to its structure
_MAX_MAGIC_WINDOWS = 16


class EntryReader(Protocol):
    """The entries to build a tree from: a layer's archive, or a directory presented as one."""

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield every entry, a directory before its contents."""

    def read(self, limit: int) -> bytes:
        """Return the next bytes of the current entry's data, at most ``limit``."""

    def peek(self, limit: int) -> bytes:
        """Return the next bytes of the current entry's data without consuming them."""


class TreeBuilder:
    """Build the tree of one layer.

    ``lowest_error`` and ``upper_error`` are what engines do not unpack so in a lowest layer, or above one.
    """

    def __init__(self, reader: EntryReader, layer: str, limits: Limits) -> None:
        self.root = FileNode.make_directory(layer)
        self.has_whiteouts = False
        self.lowest_error = self.upper_error = ""
        self._reader = reader
        self._layer = layer
        self._remaining_nodes = limits.nodes
        self._head_count = 0
        # The last entry's directory, as most entries follow others of the same directory.
        self._parent_path, self._parent = "", self.root

    def read_entries(self) -> None:
        """Read all entries. Raises :class:`MalformedImage` and :class:`LimitExceeded`."""
        for entry in self._reader:
            # One unpacking is faster than five attribute look-ups, for millions of entries.
            path, entry_type, size, link_target, mode, _ = entry
            parent_path, _, name = path.rpartition("/")
            if name in ("", "."):  # a directory's name may end in a slash
                parent_path, name = split_path(path)
                if not name:
                    continue  # the root itself
            if parent_path != self._parent_path or name == "..":
                self._enter_directory(parent_path, entry)
            if name in self._parent.children or name[0] == ".":
                self._add_node(entry, name)
            elif entry_type == SYMLINK and link_target:
                self._packed_names().add(name, mode, link_target)
            elif size or entry_type != REGULAR or (mode & _EXECUTABLE_BITS and self._head_count < _MAX_HEADS):
                self._add_node(entry, name)
            else:
                self._packed_names().add(name, mode)

    def _enter_directory(self, parent_path: str, entry: TarEntry) -> None:
        if ".." in entry.name.split("/"):
            raise MalformedImage(f"the path of the entry {entry.name!r} contains '..'")
        parent = resolve_path(self.root, parent_path, make_missing=True)
        if parent is None or parent.node.type is not FileType.DIRECTORY:
            raise MalformedImage(f"the parent of the entry {entry.name!r} is not a directory")
        # A path through a symbolic link is resolved for each entry, because an entry may replace the link.
        is_real_path = parent.path == posixpath.normpath(f"/{parent_path.strip('/')}")
        self._parent_path, self._parent = parent_path if is_real_path else _NO_DIRECTORY, parent.node

    def _add_node(self, entry: TarEntry, name: str) -> None:
        if name.startswith(WHITEOUT_PREFIX):
            self._add_whiteout(entry, name)
            return
        children = self._parent.children
        previous = children.get(name)
        if entry.type in _FILE_TYPES:
            node = self._read_file(entry)
        else:
            node = self._make_special(entry, name, previous)
        children.pop(name, None)
        if node is None:
            self._packed_names().add(name, entry.mode, entry.linkname if entry.type == SYMLINK else None)
        else:
            self._set_child(name, node)

    def _set_child(self, name: str, node: FileNode) -> None:
        self._remaining_nodes -= 1
        if self._remaining_nodes < 0:
            raise LimitExceeded("the layer has too many executables and directories")
        self._parent.children[name] = node

    def _add_whiteout(self, entry: TarEntry, name: str) -> None:
        """Record a whiteout: the base name makes an entry one, whatever its type, as in containerd."""
        target = name.removeprefix(WHITEOUT_PREFIX)
        if target in ("", ".", ".."):
            raise MalformedImage(f"the whiteout {entry.name!r} names nothing to hide")
        children, key = self._parent.children, f"/{name}"
        if name == OPAQUE_WHITEOUT:
            self._check_opaque(is_repeated=key in children)
        elif target in children or key in children or self._packed_names().find(target) is not None:
            self._remove_own_entry(target)
        self.has_whiteouts = True
        self._set_child(key, FileNode(type=FileType.WHITEOUT, layer=self._layer))

    def _remove_own_entry(self, name: str) -> None:
        """Remove an entry that a whiteout follows, as containerd does it in a lowest layer only."""
        self.upper_error = own_entry_hidden(name)
        self._parent.children.pop(name, None)
        self._packed_names().remove(name)
        self._parent_path = _NO_DIRECTORY  # it may lead through a link that is gone

    def _check_opaque(self, *, is_repeated: bool) -> None:
        if self._parent is self.root:
            self.upper_error = OPAQUE_ROOT
        # The children are looked at once, so that many whiteouts do not take quadratic time.
        if is_repeated or any(node.type is FileType.DIRECTORY for node in self._parent.children.values()):
            self.lowest_error = LATE_OPAQUE

    def _packed_names(self) -> PackedNames:
        """Return the current directory's packed names."""
        if not self._parent.packed_names:
            self._parent.packed_names.append(PackedNames())
        return self._parent.packed_names[0]

    def _read_file(self, entry: TarEntry) -> FileNode | None:
        """Return the node of a regular file; None if only its name and mode are recorded."""
        head = self._reader.peek(_HEAD_SIZE) if entry.size else b""
        if head.startswith(ELF_MAGIC):
            return self._read_program(entry, head)
        if entry.name.endswith((".conf", ".path")) and _LOADER_CONFIG.fullmatch(entry.name):
            return self._make_file(entry, self._reader.read(MAX_LOADER_CONFIG))
        if entry.mode & _EXECUTABLE_BITS and self._head_count < _MAX_HEADS:
            self._head_count += 1
            is_long = head.startswith(b"#!") or is_tar_header(head)
            return self._make_file(entry, head if is_long else head[:_SHORT_HEAD_SIZE])
        return None

    def _make_file(self, entry: TarEntry, head: bytes = b"") -> FileNode:
        mode = entry.mode & 0o7777
        return FileNode(type=FileType.FILE, mode=mode, size=entry.size, head=head, layer=self._layer)

    def _read_program(self, entry: TarEntry, head: bytes) -> FileNode:
        binary, binary_error = None, ""
        try:
            binary = read_binary(self._read_view(entry))
        except MalformedImage as error:
            binary_error = error.message
        return FileNode(
            type=FileType.FILE, mode=entry.mode & 0o7777, size=entry.size, head=head, layer=self._layer,
            binary=binary, binary_error=binary_error,
        )  # fmt: skip

    def _read_view(self, entry: TarEntry) -> FileView:
        if entry.size <= _FRONT_SIZE + _BACK_SIZE:
            return WholeFile(self._reader.read(entry.size))
        return read_windows(self._reader, entry.size)

    def _make_special(self, entry: TarEntry, name: str, previous: FileNode | None) -> FileNode | None:
        """Return the node of a link, directory or device; None for a symbolic link, which is packed."""
        if entry.type == SYMLINK:
            if not entry.linkname:
                raise MalformedImage(f"the symbolic link {entry.name!r} has no target")
            return None
        if entry.type == HARD_LINK:
            return self._resolve_hard_link(entry, name)
        if entry.type != DIRECTORY:
            return FileNode(type=FileType.OTHER, mode=entry.mode & 0o7777, layer=self._layer)
        mode = entry.mode & 0o7777
        if previous is not None and previous.type is FileType.DIRECTORY:
            return replace(previous, mode=mode, is_implied=False)
        check_not_hidden(self._parent, name)
        return FileNode.make_directory(self._layer, mode)

    def _resolve_hard_link(self, entry: TarEntry, name: str) -> FileNode:
        """Return the target of a hard link, with the mode of the link.

        Raises :class:`MalformedImage` if the layer has no such file so far; containerd knows no other layer.
        """
        self._parent.children.pop(name, None)  # first, as in containerd: the target may be below it
        path, _, target_name = entry.linkname.rpartition("/")
        directory = resolve_path(self.root, path)
        if directory is None or (directory.node is self._parent and target_name == name):
            raise MalformedImage(hard_link_error(entry.name, entry.linkname))
        target = resolve_path(directory.node, target_name, follow_last=False)
        if target is None or target.node.type is FileType.DIRECTORY or target.node is directory.node:
            raise MalformedImage(hard_link_error(entry.name, entry.linkname))
        node = target.node
        if node.type is not FileType.SYMLINK:
            directory.node.children[target_name] = node  # it may have been a packed name, which has no node
            node.set_mode(entry.mode & 0o7777)
        return node


def read_windows(reader: EntryReader, size: int) -> PartialFile:
    """Read a large executable to its end; keep both ends and windows around magic numbers."""
    front = reader.read(_FRONT_SIZE)
    windows: list[tuple[int, bytes]] = []
    tail: deque[bytes] = deque(maxlen=_BACK_SIZE // _CHUNK_SIZE + 1)
    offset, lead, chunk = _FRONT_SIZE, front[-_MAGIC_LEAD:], reader.read(_CHUNK_SIZE)
    while chunk:
        tail.append(chunk)
        next_chunk = reader.read(min(_CHUNK_SIZE, size - offset - len(chunk)))
        if len(windows) < _MAX_MAGIC_WINDOWS:
            windows += _find_magic_windows(lead, chunk, next_chunk[:STREAM_WINDOW_SIZE], offset)
        offset, lead, chunk = offset + len(chunk), chunk[-_MAGIC_LEAD:], next_chunk
    back = b"".join(tail)
    return PartialFile(size, ((0, front), *windows, (size - len(back), back)))


def _find_magic_windows(
    lead: bytes, chunk: bytes, next_bytes: bytes, offset: int
) -> Iterator[tuple[int, bytes]]:
    """Yield a window for each magic number that starts in ``chunk``, which is at ``offset`` of the file."""
    data, end = lead + chunk + next_bytes, len(lead) + len(chunk)
    for magic in STREAM_MAGICS:
        position = data.find(magic, len(lead))
        while 0 <= position < end:
            start = max(position - _MAGIC_LEAD, 0)
            yield offset - len(lead) + start, data[start : position + STREAM_WINDOW_SIZE]
            position = data.find(magic, position + STREAM_WINDOW_SIZE)
