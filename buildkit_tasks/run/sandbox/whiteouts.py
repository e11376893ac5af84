"""What a layer hides of those below it, and never of itself.

OCI image specification, "Whiteouts": ``.wh.NAME`` hides NAME, ``.wh..wh..opq`` everything in its
folder; both are about lower layers only, in whatever order the layer has its entries.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.packed_names import PackedNames
from buildkit_tasks.run.sandbox.openat2 import DIRECTORY_FLAGS, stat_entry, walk_directories

if TYPE_CHECKING:
    from buildkit_tasks.run.sandbox.openat2 import DirectoryFd

__all__ = ["OPAQUE_WHITEOUT", "WHITEOUT_PREFIX", "LayerEntries"]

WHITEOUT_PREFIX = ".wh."
OPAQUE_WHITEOUT = ".wh..wh..opq"


@dataclass(slots=True, kw_only=True)
class LayerEntries:
    """What the current layer has put down, so that its whiteouts spare that.

    ``names`` are its entries in folders that lower layers brought, ``whole`` the folders that hold
    nothing of theirs (any more); both are known by the folder's number. With the ``lowest`` layer
    that is any folder, and nothing need be known.
    """

    is_lowest: bool = True
    names_by_inode: dict[int, PackedNames] = field(default_factory=dict)
    owned_dirs: set[int] = field(default_factory=set)

    def is_owned(self, inode: int) -> bool:
        """Whether lower layers have nothing in this folder."""
        return self.is_lowest or inode in self.owned_dirs

    def add_owned_dir(self, inode: int) -> None:
        """Note a folder that the layer made itself."""
        if not self.is_lowest:
            self.owned_dirs.add(inode)

    def get_names(self, inode: int) -> PackedNames | None:
        """Where to note the names of that folder; None where no whiteout can hide any."""
        return None if self.is_owned(inode) else self.names_by_inode.setdefault(inode, PackedNames())

    def apply_whiteout(self, directory: DirectoryFd, name: str) -> bool:
        """Hide what lower layers have under that name; whether paths may lead elsewhere then."""
        raw_name = name.encode("utf-8", "surrogateescape")
        target_stat = None if self.is_owned(directory.inode) else stat_entry(directory.fd, raw_name)
        if target_stat is None or self.is_owned(target_stat.st_ino):
            return False
        is_protected = self._has_entry(directory.inode, name) or self._has_entries(target_stat.st_ino)
        if stat.S_ISDIR(target_stat.st_mode):
            self._hide_lower_entries(directory.fd, raw_name)
            if not is_protected:
                _remove_if_empty(directory.fd, raw_name)
            return True
        if not is_protected:
            os.unlink(raw_name, dir_fd=directory.fd)
        return not is_protected and stat.S_ISLNK(target_stat.st_mode)

    def apply_opaque(self, directory: DirectoryFd) -> bool:
        """Hide everything that lower layers have in the folder; whether they may have had any."""
        if self.is_owned(directory.inode):
            return False
        self._hide_lower_entries(directory.fd, b".")
        return True

    def _has_entry(self, inode: int, name: str) -> bool:
        names = self.names_by_inode.get(inode)
        return names is not None and names.find(name) is not None

    def _has_entries(self, inode: int) -> bool:
        """Whether the layer has an entry in that folder: also if it is a device, which is not made."""
        return bool(self.names_by_inode.get(inode))

    def _hide_lower_entries(self, parent_fd: int, name: bytes) -> None:
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)
        try:
            walk_directories(fd, self._hide_files, self._hide_directory)
            self.add_owned_dir(os.fstat(fd).st_ino)
        finally:
            os.close(fd)

    def _hide_files(self, directory_fd: int) -> list[bytes]:
        """Remove what is no folder; gives the folders in which lower layers may have something."""
        inode, subdirectories = os.fstat(directory_fd).st_ino, []
        with os.scandir(directory_fd) as entries:
            for each in entries:
                raw_name = os.fsencode(each.name)
                if each.is_dir(follow_symlinks=False):
                    if not self.is_owned(
                        os.stat(raw_name, dir_fd=directory_fd, follow_symlinks=False).st_ino
                    ):
                        subdirectories.append(raw_name)
                elif not self._has_entry(inode, _decode_name(raw_name)):
                    os.unlink(raw_name, dir_fd=directory_fd)
        return subdirectories

    def _hide_directory(self, parent_fd: int, name: bytes, directory_fd: int) -> None:
        """Remove a folder that nothing is left in, unless the layer has an entry for it or in it."""
        inode = os.fstat(directory_fd).st_ino
        self.add_owned_dir(inode)
        if not self._has_entry(os.fstat(parent_fd).st_ino, _decode_name(name)) and not self._has_entries(
            inode
        ):
            _remove_if_empty(parent_fd, name)


def _remove_if_empty(parent_fd: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def _decode_name(raw_name: bytes) -> str:
    return raw_name.decode("utf-8", "surrogateescape")
