"""One layer's archive read into a tree: programs are looked into while their bytes go by."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Protocol

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.packed_names import Names
from buildkit_tasks.oci.layers.rootfs import WHITEOUT, Node, NodeType, walk
from buildkit_tasks.oci.layers.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Entry
from buildkit_tasks.platforms.elf.isa_check import STREAM_MAGICS, STREAM_WINDOW
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC, inspect
from buildkit_tasks.platforms.elf.view import Bytes, View, Windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.limits import Limits

__all__ = ["Entries", "TreeBuilder", "keep_windows"]

_HEAD = 256  # an ELF header and its first program headers, or a `#!` line (BINPRM_BUF_SIZE)
_SHORT = 16  # what is kept of any other file that may be run: enough to say what it is not
_RUN = 0o111
_MAX_HEADS = 20_000  # files that may be run of which so much is kept
_FILES = frozenset([REGULAR, "7"])
# What a dynamic loader reads, and where the libraries are named that are looked for.
_LOADER_SETTINGS = re.compile(r"(?:\./)?etc/(?:ld\.so\.conf(?:\.d/[^/]+\.conf)?|ld-musl-[^/]+\.path)")
_MAX_SETTINGS = 64 << 10
_NOWHERE = "\0"  # no folder of an archive is called so

# Of a program larger than both ends together only these, and what stands around a magic, are kept.
_FRONT, _BACK = 16 << 20, 4 << 20
_PIECE = 1 << 20
_LEAD = 16  # bytes before a magic that belong to it
_MAX_HITS = 16


class Entries(Protocol):
    """What a tree is built from: a layer's archive, or a folder that is read as one would be."""

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, a folder before what is in it."""

    def read(self, limit: int) -> bytes:
        """The next bytes of the current entry's data."""

    def peek(self, limit: int) -> bytes:
        """The same bytes, which are given again."""


class TreeBuilder:
    """The tree of one layer, entry by entry.

    ``links`` are hard links to files that it does not hold, ``whiteouts`` whether it removes any.
    """

    def __init__(self, reader: Entries, layer: str, limits: Limits) -> None:
        self.root = Node.folder(layer)
        self.links: list[tuple[str, str]] = []
        self.whiteouts = False
        self._reader = reader
        self._layer = layer
        self._left = limits.nodes
        self._heads = 0
        self._folder, self._parent = "", self.root  # of the last entry, until an entry may move folders

    def fill(self) -> None:
        """Read the archive. Raises :class:`MalformedImage` and :class:`LimitExceeded`."""
        for entry in self._reader:
            path, kind, size, link, mode, _ = entry  # by their names each would cost as much as a step below
            folder, _, name = path.rpartition("/")
            if not name:  # a folder's name may end in a slash
                folder, _, name = path.rstrip("/").rpartition("/")
            if name in ("", "."):
                continue  # the root itself
            if folder != self._folder or name == "..":
                self._enter(folder, entry)
            if name in self._parent.children or name[0] == ".":
                self._add(entry, name)
            elif kind == SYMLINK:
                self._plain().add(name, mode, link)
            elif size or kind != REGULAR or (mode & _RUN and self._heads < _MAX_HEADS):
                self._add(entry, name)
            else:
                self._plain().add(name, mode)

    def _enter(self, folder: str, entry: Entry) -> None:
        if ".." in entry.name.split("/"):
            raise MalformedImage(f"the entry {entry.name!r} leads out of its folder")
        parent = walk(self.root, folder, make=True)
        if parent is None or parent.node.type is not NodeType.FOLDER:
            raise MalformedImage(f"the entry {entry.name!r} is below something that is no folder")
        self._folder, self._parent = folder, parent.node

    def _add(self, entry: Entry, name: str) -> None:
        children = self._parent.children
        old = children.get(name)
        if name.startswith(WHITEOUT):
            self.whiteouts = True
            node: Node | None = self._node(entry)
        else:
            node = self._file(entry) if entry.type in _FILES else self._other(entry, old)
        if old is not None:
            del children[name]
            self._folder = _NOWHERE  # it may have been a folder, or have led to one
        if node is None:
            self._plain().add(name, entry.mode, entry.linkname if entry.type == SYMLINK else None)
        else:
            self._left -= 1
            if self._left < 0:
                raise LimitExceeded("the layer has too many programs and folders")
            children[name] = node

    def _plain(self) -> Names:
        """The names in this folder of which nothing more is kept."""
        if not self._parent.plain:
            self._parent.plain.append(Names())
        return self._parent.plain[0]

    def _file(self, entry: Entry) -> Node | None:
        """What is kept of a file; None for one of which its name is enough."""
        head = self._reader.peek(_HEAD) if entry.size else b""
        if head.startswith(ELF_MAGIC):
            return self._program(entry, head)
        if entry.name.endswith((".conf", ".path")) and _LOADER_SETTINGS.fullmatch(entry.name):
            return self._node(entry, self._reader.read(_MAX_SETTINGS))
        if entry.mode & _RUN and self._heads < _MAX_HEADS:
            self._heads += 1
            return self._node(entry, head if head.startswith(b"#!") else head[:_SHORT])
        return None

    def _node(self, entry: Entry, head: bytes = b"") -> Node:
        mode = entry.mode & 0o7777
        return Node(type=NodeType.FILE, mode=mode, size=entry.size, head=head, layer=self._layer)

    def _program(self, entry: Entry, head: bytes) -> Node:
        binary, flaw = None, ""
        try:
            binary = inspect(self._view(entry))
        except MalformedImage as error:
            flaw = error.message
        return Node(
            type=NodeType.FILE, mode=entry.mode & 0o7777, size=entry.size, head=head, layer=self._layer,
            binary=binary, flaw=flaw,
        )  # fmt: skip

    def _view(self, entry: Entry) -> View:
        if entry.size <= _FRONT + _BACK:
            return Bytes(self._reader.read(entry.size))
        return keep_windows(self._reader, entry.size)

    def _other(self, entry: Entry, old: Node | None) -> Node | None:
        """What is kept of anything else; None for a symbolic link, whose name and target are enough."""
        if entry.type == SYMLINK:
            return None
        if entry.type == HARD_LINK:
            return self._linked(entry)
        if entry.type != DIRECTORY:
            return Node(type=NodeType.OTHER, mode=entry.mode & 0o7777, layer=self._layer)
        if old is not None and old.type is NodeType.FOLDER:
            return old
        return Node.folder(self._layer, entry.mode & 0o7777)

    def _linked(self, entry: Entry) -> Node:
        """The file that a hard link names, which may be one of a lower layer."""
        found = walk(self.root, entry.linkname, follow=False)
        if found is None:
            self.links.append((entry.name, entry.linkname))
            return Node(type=NodeType.HARD_LINK, target=entry.linkname, layer=self._layer)
        if found.node.type is NodeType.FOLDER:
            raise MalformedImage(f"{entry.name!r} is a hard link to {entry.linkname!r}, which is a folder")
        return found.node


def keep_windows(reader: Entries, size: int) -> Windows:
    """What is worth keeping of a large program that is read on: both ends, and what stands at a magic."""
    front = reader.read(_FRONT)
    hits: list[tuple[int, bytes]] = []
    tail: deque[bytes] = deque(maxlen=_BACK // _PIECE + 1)
    at, before, piece = _FRONT, front[-_LEAD:], reader.read(_PIECE)
    while piece:
        tail.append(piece)
        following = reader.read(min(_PIECE, size - at - len(piece)))
        if len(hits) < _MAX_HITS:
            hits += _hits(before, piece, following[:STREAM_WINDOW], at)
        at, before, piece = at + len(piece), piece[-_LEAD:], following
    last = b"".join(tail)
    return Windows(size, ((0, front), *hits, (size - len(last), last)))


def _hits(before: bytes, piece: bytes, following: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """A window for each magic that starts in ``piece``, which stands at ``offset`` of its file."""
    data, end = before + piece + following, len(before) + len(piece)
    for magic in STREAM_MAGICS:
        at = data.find(magic, len(before))
        while 0 <= at < end:
            start = max(at - _LEAD, 0)
            yield offset - len(before) + start, data[start : at + STREAM_WINDOW]
            at = data.find(magic, at + STREAM_WINDOW)
