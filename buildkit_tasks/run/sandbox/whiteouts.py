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

from buildkit_tasks.oci.layers.packed_names import Names
from buildkit_tasks.run.sandbox.openat2 import READ, descend, lookup

if TYPE_CHECKING:
    from buildkit_tasks.run.sandbox.openat2 import Folder

__all__ = ["OPAQUE", "WHITEOUT", "Mine"]

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"


@dataclass(slots=True, kw_only=True)
class Mine:
    """What the current layer has put down, so that its whiteouts spare that.

    ``names`` are its entries in folders that lower layers brought, ``whole`` the folders that hold
    nothing of theirs (any more); both are known by the folder's number. With the ``lowest`` layer
    that is any folder, and nothing need be known.
    """

    lowest: bool = True
    names: dict[int, Names] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)

    def is_whole(self, folder: int) -> bool:
        """Whether lower layers have nothing in this folder."""
        return self.lowest or folder in self.whole

    def add_whole(self, folder: int) -> None:
        """Note a folder that the layer made itself."""
        if not self.lowest:
            self.whole.add(folder)

    def noted_in(self, folder: int) -> Names | None:
        """Where to note the names of that folder; None where no whiteout can hide any."""
        return None if self.is_whole(folder) else self.names.setdefault(folder, Names())

    def hide(self, folder: Folder, name: str) -> bool:
        """Hide what lower layers have under that name; whether paths may lead elsewhere then."""
        raw = name.encode("utf-8", "surrogateescape")
        found = None if self.is_whole(folder.number) else lookup(folder.descriptor, raw)
        if found is None or self.is_whole(found.st_ino):
            return False
        spared = self._has(folder.number, name) or self._has_in(found.st_ino)
        if stat.S_ISDIR(found.st_mode):
            self._hide_in(folder.descriptor, raw)
            if not spared:
                _remove_empty(folder.descriptor, raw)
            return True
        if not spared:
            os.unlink(raw, dir_fd=folder.descriptor)
        return not spared and stat.S_ISLNK(found.st_mode)

    def hide_all(self, folder: Folder) -> bool:
        """Hide everything that lower layers have in the folder; whether they may have had any."""
        if self.is_whole(folder.number):
            return False
        self._hide_in(folder.descriptor, b".")
        return True

    def _has(self, folder: int, name: str) -> bool:
        names = self.names.get(folder)
        return names is not None and names.find(name) is not None

    def _has_in(self, folder: int) -> bool:
        """Whether the layer has an entry in that folder: also if it is a device, which is not made."""
        return bool(self.names.get(folder))

    def _hide_in(self, above: int, name: bytes) -> None:
        descriptor = os.open(name, READ, dir_fd=above)
        try:
            descend(descriptor, self._hide_files, self._hide_folder)
            self.add_whole(os.fstat(descriptor).st_ino)
        finally:
            os.close(descriptor)

    def _hide_files(self, here: int) -> list[bytes]:
        """Remove what is no folder; gives the folders in which lower layers may have something."""
        number, below = os.fstat(here).st_ino, []
        with os.scandir(here) as found:
            for each in found:
                raw = os.fsencode(each.name)
                if each.is_dir(follow_symlinks=False):
                    if not self.is_whole(os.stat(raw, dir_fd=here, follow_symlinks=False).st_ino):
                        below.append(raw)
                elif not self._has(number, _text(raw)):
                    os.unlink(raw, dir_fd=here)
        return below

    def _hide_folder(self, above: int, name: bytes, here: int) -> None:
        """Remove a folder that nothing is left in, unless the layer has an entry for it or in it."""
        number = os.fstat(here).st_ino
        self.add_whole(number)
        if not self._has(os.fstat(above).st_ino, _text(name)) and not self._has_in(number):
            _remove_empty(above, name)


def _remove_empty(above: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=above)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
