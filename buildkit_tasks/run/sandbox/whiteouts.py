"""Apply the whiteouts of a layer to a directory tree that already holds entries of that layer.

OCI image specification, layer.md, "Whiteouts": ``.wh.NAME`` hides NAME, and ``.wh..wh..opq`` hides everything
in its directory. Both hide only entries of lower layers, whatever the order of entries in the layer. As in
containerd the base name alone makes an entry a whiteout, whatever its type. All layers are unpacked into one
tree, however, which holds entries of lower layers and of the current one when a whiteout is read.
:class:`LayerEntries` records which are the layer's own. What containerd unpacks in another way than the
specification says is rejected.

Example: the lower layers have ``x/old`` and ``x/s/old``; the layer has these entries, in this order:

==================  =======================  =================  =================  =========================
entry               tree afterwards          recorded names     owned directories  why
==================  =======================  =================  =================  =========================
``x/new``           ``x/new x/old x/s/old``  ``x: {new}``                          ``x`` is shared
``x/.wh.s``         ``x/new x/old``          ``x: {new}``                          ``x/s/old`` is lower
``x/.wh..wh..opq``  ``x/new``                ``x: {new}``       ``x``              ``x/new`` is the layer's
``y/z``             ``x/new y/z``            ``x: {new}``       ``x y``            the layer has created ``y``
==================  =======================  =================  =================  =========================

A directory is

* *owned* if lower layers have nothing in it: the layer has created it, or a whiteout has emptied it;
* *shared* otherwise. Of a shared directory the names that the layer has written are recorded.

In the lowest layer every directory is owned, and nothing is recorded.

Verification applies whiteouts to file trees in memory instead: see :mod:`buildkit_tasks.oci.layers.overlay`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.packed_names import PackedNames
from buildkit_tasks.oci.layers.rootfs import LATE_OPAQUE, own_entry_hidden
from buildkit_tasks.run.sandbox.openat2 import DIRECTORY_FLAGS, remove_entry, stat_entry, walk_directories

if TYPE_CHECKING:
    from buildkit_tasks.run.sandbox.openat2 import DirectoryFd

__all__ = ["LayerEntries"]


class LayerEntries:
    """Entries created by the layer being applied, which its own whiteouts must not delete.

    Directories are known by their inode numbers.
    """

    def __init__(self, *, is_lowest: bool = True) -> None:
        self.is_lowest = is_lowest
        self._owned_dirs: set[int] = set()
        self._own_names: dict[int, PackedNames] = {}  # of shared directories
        self._hidden_names: set[tuple[int, bytes]] = set()

    def is_owned(self, inode: int) -> bool:
        """Return True if lower layers have nothing in this directory."""
        return self.is_lowest or inode in self._owned_dirs

    def is_own(self, inode: int, name: bytes) -> bool:
        """Return True if what has this name in this directory is of the layer."""
        names = self._own_names.get(inode)
        return self.is_owned(inode) or (names is not None and names.find(_decode_name(name)) is not None)

    def add_owned_dir(self, inode: int) -> None:
        """Record a directory that the layer has created, or a whiteout emptied."""
        if not self.is_lowest:
            self._owned_dirs.add(inode)

    def names_to_record(self, inode: int) -> PackedNames | None:
        """Return where to add the names that the layer writes in a directory; None if it is owned."""
        return None if self.is_owned(inode) else self._own_names.setdefault(inode, PackedNames())

    def record_replaced(self, parent: DirectoryFd, name: bytes, inode: int) -> None:
        """Record that an entry replaces a directory, which another entry for it would show again."""
        if not self.is_owned(inode):
            self._hidden_names.add((parent.inode, name))

    def check_not_hidden(self, directory_fd: int, name: bytes) -> None:
        """Raise :class:`MalformedImage` if the layer also hides a name at which it creates a directory."""
        if self._hidden_names and (os.fstat(directory_fd).st_ino, name) in self._hidden_names:
            raise MalformedImage(f"a layer has {own_entry_hidden(_decode_name(name))}")

    def apply_whiteout(self, directory: DirectoryFd, name: str) -> bool:
        """Apply ``.wh.NAME``. Return True if cached directory lookups must be invalidated.

        ==============================  ===========================================================
        NAME                            effect in a layer that is not the lowest
        ==============================  ===========================================================
        missing                         none
        a file of a lower layer         removed
        a directory of lower layers     removed with everything in it
        an entry of the layer, or       :class:`MalformedImage`: overlayfs cannot have both
        with one in it
        ==============================  ===========================================================

        In the lowest layer an entry of the layer itself is removed, as containerd does it.
        """
        raw_name = name.encode("utf-8", "surrogateescape")
        is_repeated = (directory.inode, raw_name) in self._hidden_names
        self._hidden_names.add((directory.inode, raw_name))
        if self.is_lowest:
            return remove_entry(directory.fd, raw_name)
        if is_repeated:
            raise MalformedImage(f"a layer has {own_entry_hidden(name)}")
        target = stat_entry(directory.fd, raw_name)
        if target is None:
            return False
        is_directory = stat.S_ISDIR(target.st_mode)
        if self.is_own(directory.inode, raw_name) or (is_directory and self._has_own_entries(target.st_ino)):
            raise MalformedImage(f"a layer has {own_entry_hidden(name)}")
        if not is_directory:
            os.unlink(raw_name, dir_fd=directory.fd)
            return stat.S_ISLNK(target.st_mode)
        self._remove_lower_entries(directory.fd, raw_name)
        try:
            os.rmdir(raw_name, dir_fd=directory.fd)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise MalformedImage(f"a layer has {own_entry_hidden(name)}") from None
            raise
        return True

    def apply_opaque(self, directory: DirectoryFd) -> bool:
        """Apply ``.wh..wh..opq``. Return True if cached directory lookups must be invalidated."""
        if self.is_lowest:
            self._check_lowest_opaque(directory)
        if self.is_owned(directory.inode):
            return False
        self._remove_lower_entries(directory.fd, b".")
        return True

    def _check_lowest_opaque(self, directory: DirectoryFd) -> None:
        key = directory.inode, b""
        if key in self._hidden_names or _has_subdirectory(directory):
            raise MalformedImage(f"the lowest layer has {LATE_OPAQUE}")
        self._hidden_names.add(key)

    def _has_own_entries(self, inode: int) -> bool:
        """Return True if the layer has an entry in a directory, even a device or a whiteout."""
        return self.is_owned(inode) or inode in self._own_names

    def _remove_lower_entries(self, parent_fd: int, name: bytes) -> None:
        """Remove what lower layers have in a shared directory, which is owned afterwards."""
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)
        try:
            walk_directories(fd, self._remove_lower_files, self._finish_directory)
            self.add_owned_dir(os.fstat(fd).st_ino)
        finally:
            os.close(fd)

    def _remove_lower_files(self, directory_fd: int) -> list[bytes]:
        """Remove the files of lower layers in a directory, and return its shared subdirectories."""
        inode, shared_directories = os.fstat(directory_fd).st_ino, []
        with os.scandir(directory_fd) as entries:
            for each in entries:
                raw_name = os.fsencode(each.name)
                if each.is_dir(follow_symlinks=False):
                    # Not each.inode(): on overlayfs, d_ino of readdir(3) may differ from st_ino.
                    entry_stat = os.stat(raw_name, dir_fd=directory_fd, follow_symlinks=False)
                    if not self.is_owned(entry_stat.st_ino):
                        shared_directories.append(raw_name)
                elif not self.is_own(inode, raw_name):
                    os.unlink(raw_name, dir_fd=directory_fd)
        return shared_directories

    def _finish_directory(self, parent_fd: int, name: bytes, directory_fd: int) -> None:
        """Record that a directory is owned now; remove it unless the layer has an entry for it or in it."""
        inode = os.fstat(directory_fd).st_ino
        self.add_owned_dir(inode)
        parent_inode = os.fstat(parent_fd).st_ino
        if not self.is_own(parent_inode, name) and inode not in self._own_names:
            _remove_if_empty(parent_fd, name)


def _has_subdirectory(directory: DirectoryFd) -> bool:
    fd = os.open(b".", DIRECTORY_FLAGS, dir_fd=directory.fd)
    try:
        with os.scandir(fd) as entries:
            return any(each.is_dir(follow_symlinks=False) for each in entries)
    finally:
        os.close(fd)


def _remove_if_empty(parent_fd: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def _decode_name(raw_name: bytes) -> str:
    return raw_name.decode("utf-8", "surrogateescape")
