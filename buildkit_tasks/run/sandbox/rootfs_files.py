"""Read files of an unpacked root file system, with symbolic links resolved inside it."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import FileNode, FileType, ResolvedPath
from buildkit_tasks.run.sandbox.openat2 import O_PATH, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["RootfsFiles"]

_HEAD_BYTES = 8192  # an ELF header and its loader's path, which Go's linker puts below byte 4096


@dataclass(frozen=True, slots=True)
class RootfsFiles:
    """The files below ``root``; every symbolic link is resolved as if chrooted there."""

    root: Path

    def read_text(self, path: str, max_bytes: int) -> str:
        """Return the first ``max_bytes`` bytes of a file as text; empty if there is no such regular file."""
        with self._open_regular_file(path) as fd:
            data = os.read(fd, max_bytes) if fd is not None else b""
        return data.decode("utf-8", "replace")

    def find_file(self, path: str) -> ResolvedPath | None:
        """Return the regular file at an absolute path; None without one."""
        with self._open_regular_file(path) as fd:
            if fd is None:
                return None
            file_stat = os.fstat(fd)
            head = os.read(fd, _HEAD_BYTES)
        mode = file_stat.st_mode & 0o777
        return ResolvedPath(path, FileNode(type=FileType.FILE, mode=mode, size=file_stat.st_size, head=head))

    def is_directory(self, path: str) -> bool:
        """Return True if there is a directory at an absolute path."""
        with self._open(path) as fd:
            return fd is not None and stat.S_ISDIR(os.fstat(fd).st_mode)

    @contextlib.contextmanager
    def _open_regular_file(self, path: str) -> Iterator[int | None]:
        """Yield a descriptor of the regular file at a path, or None."""
        with self._open(path) as fd:
            yield fd if fd is not None and stat.S_ISREG(os.fstat(fd).st_mode) else None

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[int | None]:
        """Yield a descriptor of what is at a path, or None."""
        with contextlib.ExitStack() as stack:
            root_fd = os.open(self.root, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root_fd)
            try:
                fd = open_file(root_fd, os.fsencode(path))
            except OSError:
                yield None
                return
            stack.callback(os.close, fd)
            yield fd
