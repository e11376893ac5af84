"""The files of an unpacked root, as its guest will see them: no link leads out of it."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH, Found, Node, NodeType
from buildkit_tasks.run.sandbox.openat2 import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RootFiles"]

_HEAD = 256  # an ELF header, or a `#!` line


@dataclass(frozen=True, slots=True)
class RootFiles:
    """Looks into the folder of a root file system, every symbolic link resolved as if chrooted there."""

    root: Path

    def find_command(self, name: str, path_env: str = DEFAULT_PATH, working_dir: str = "/") -> Found | None:
        """The file that starting ``name`` would run."""
        if "/" in name:
            return self._file(posixpath.join("/", working_dir, name))
        candidates = (self._file(posixpath.join("/", folder, name)) for folder in path_env.split(":"))
        return next((found for found in candidates if found is not None and found.node.mode & 0o111), None)

    def text(self, path: str, limit: int) -> str:
        """What a file says, at most ``limit`` bytes of it; nothing if there is no such file."""
        with self._opened(path) as file:
            data = os.read(file, limit) if file is not None else b""
        return data.decode("utf-8", "replace")

    def _file(self, path: str) -> Found | None:
        with self._opened(path) as file:
            if file is None:
                return None
            stated = os.fstat(file)
            head = os.read(file, _HEAD)
        mode = stated.st_mode & 0o777
        return Found(path, Node(type=NodeType.FILE, mode=mode, size=stated.st_size, head=head))

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[int | None]:
        """A regular file by its path, or None."""
        with contextlib.ExitStack() as stack:
            root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
            try:
                file = open_file(root, os.fsencode(path))
            except OSError:
                yield None
                return
            stack.callback(os.close, file)
            yield file if stat.S_ISREG(os.fstat(file).st_mode) else None
