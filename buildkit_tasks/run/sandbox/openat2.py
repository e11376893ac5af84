"""File operations below one directory that no path or symbolic link of an image can leave.

A parent directory is opened by openat2(2) with RESOLVE_IN_ROOT, so absolute symbolic links and ``..`` are
resolved as if the directory were the root. Everything else is done to a single name in an open directory,
without following it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import EmulatorError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DIRECTORY_FLAGS",
    "O_PATH",
    "DirectoryFd",
    "RootedDirectory",
    "chmod_nofollow",
    "open_file",
    "remove_entry",
    "remove_tree",
    "stat_entry",
    "walk_directories",
]

_OPENAT2 = 437  # on every architecture: include/uapi/asm-generic/unistd.h
# include/uapi/linux/openat2.h
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_IN_ROOT = 0x02, 0x04, 0x10
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
O_PATH: int = getattr(os, "O_PATH", 0)  # Linux only; this module can be imported elsewhere
_PATH_FLAGS = O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_RETRIES = 10_000  # after EAGAIN: a rename elsewhere in the system disturbed the look-up, see openat2(2)
_MAX_LINKS = 40  # MAXSYMLINKS of Linux: include/linux/namei.h
_MAX_CACHED = 8  # directories: those of entries and of hard link targets
_OWNER_MODE = 0o700


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)
_DIRECTORY_IN_ROOT = _OpenHow(_PATH_FLAGS, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
_DIRECTORY_WITHOUT_LINKS = _OpenHow(_PATH_FLAGS, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_SYMLINKS)
_FILE_IN_ROOT = _OpenHow(_FILE_FLAGS, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


class DirectoryFd(NamedTuple):
    """An open directory: an O_PATH descriptor, for use as ``dir_fd`` only, and its inode number."""

    fd: int
    inode: int


class RootedDirectory:
    """Opens directories below ``path``.

    ``make_directory`` creates a missing one: (parent descriptor, name). With the same arguments ``is_lower``
    tells whether a name is of a lower layer: where a path needs a directory, a file or symbolic link of one
    is replaced.

    It caches and owns the descriptors that it returns. One stays open until the second :meth:`invalidate`
    after it was returned, so a caller may still use it after the first.
    """

    def __init__(
        self,
        path: Path,
        make_directory: Callable[[int, bytes], object],
        is_lower: Callable[[int, bytes], bool],
    ) -> None:
        self.fd = os.open(path, DIRECTORY_FLAGS)
        self._make_directory = make_directory
        self._is_lower = is_lower
        self._has_replaced = False  # something of a lower layer, so cached paths may lead elsewhere
        self._cached: dict[tuple[bytes, bool], DirectoryFd] = {}
        self._retired_directories: list[DirectoryFd] = []

    def close(self) -> None:
        """Close all descriptors."""
        self.invalidate()
        self.invalidate()
        os.close(self.fd)

    def open_directory(self, path: bytes, *, create: bool = False) -> DirectoryFd:
        """Open the directory at a path, resolved inside the root.

        With ``create``, missing directories are created, also those that a symbolic link names, and what a
        lower layer has in their place is removed. Raises :class:`OSError` as ``open`` does.
        """
        directory = self._cached.get((path, create))
        if directory is None:
            fd = self._open_or_create(path) if create else _open_in_root(self.fd, path)
            if self._has_replaced:
                self._has_replaced = False
                self.invalidate()
            directory = self._cache_directory((path, create), fd)
        return directory

    def invalidate(self) -> None:
        """Forget resolved paths: a directory or a symbolic link was removed, so they may lead elsewhere."""
        for directory in self._retired_directories:
            os.close(directory.fd)
        self._retired_directories, self._cached = list(self._cached.values()), {}

    def _cache_directory(self, key: tuple[bytes, bool], fd: int) -> DirectoryFd:
        if len(self._cached) >= _MAX_CACHED:
            self.invalidate()
        directory = self._cached[key] = DirectoryFd(fd, os.fstat(fd).st_ino)
        return directory

    def _open_or_create(self, path: bytes) -> int:
        try:
            # A link may be of a lower layer.
            return _open_in_root(self.fd, path, _DIRECTORY_WITHOUT_LINKS)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        return self._create_path(path)

    def _create_path(self, path: bytes) -> int:
        """Resolve a path as the kernel does, one component at a time, and create missing directories."""
        current_fd, depth, link_count, pending = os.dup(self.fd), 0, 0, path.split(b"/")[::-1]
        try:
            while pending:
                name = pending.pop()
                if name in (b"", b".") or (name == b".." and not depth):
                    continue
                target = None if name == b".." else self._resolve_component(current_fd, name)
                if target is None:
                    current_fd = _replace_fd(current_fd, _open_path_fd(current_fd, name))
                    depth += -1 if name == b".." else 1
                    continue
                link_count += 1
                if link_count > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # noqa: TRY301 - as the kernel does
                if target.startswith(b"/"):
                    current_fd, depth = _replace_fd(current_fd, os.dup(self.fd)), 0
                pending += target.split(b"/")[::-1]
        except BaseException:
            os.close(current_fd)
            raise
        return current_fd

    def _resolve_component(self, directory_fd: int, name: bytes) -> bytes | None:
        """Return the target of a symbolic link, else None; make a directory of a missing or lower name."""
        entry = stat_entry(directory_fd, name)
        if entry is not None and not stat.S_ISDIR(entry.st_mode) and self._is_lower(directory_fd, name):
            os.unlink(name, dir_fd=directory_fd)
            entry, self._has_replaced = None, True
        if entry is None:
            self._make_directory(directory_fd, name)
            return None
        return os.readlink(name, dir_fd=directory_fd) if stat.S_ISLNK(entry.st_mode) else None


def stat_entry(directory_fd: int, name: bytes) -> os.stat_result | None:
    """Return lstat(2) of a name in a directory; None if it does not exist."""
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def chmod_nofollow(directory_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of a name that is not a symbolic link; fchmodat2(2) exists only since Linux 6.6."""
    path_fd = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        Path(f"/proc/self/fd/{path_fd}").chmod(mode)
    finally:
        os.close(path_fd)


def walk_directories(
    directory_fd: int, enter: Callable[[int], list[bytes]], leave: Callable[[int, bytes, int], None]
) -> None:
    """Walk the directories below an open one, children before their parent is left.

    ``enter(directory_fd)`` is called for each and returns the names of the children to descend into;
    ``leave(parent_fd, name, directory_fd)`` is called for each but the first. Two descriptors suffice for
    any depth. The way up is ``..``, so no other process may move directories meanwhile.
    """
    current_fd = os.dup(directory_fd)
    try:
        stack = [(b"", enter(current_fd))]
        while True:
            name, pending = stack[-1]
            if pending:
                name = pending.pop()
                current_fd = _replace_fd(current_fd, _open_readable(current_fd, name))
                stack.append((name, enter(current_fd)))
                continue
            stack.pop()
            if not stack:
                return
            child_fd, current_fd = current_fd, os.open(b"..", DIRECTORY_FLAGS, dir_fd=current_fd)
            try:
                leave(current_fd, name, child_fd)
            finally:
                os.close(child_fd)
    finally:
        os.close(current_fd)


def remove_tree(directory_fd: int, name: bytes) -> None:
    """Remove a name and everything below it, whatever the modes of its directories."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except IsADirectoryError:
        fd = _open_readable(directory_fd, name)
        try:
            walk_directories(
                fd, _remove_files, lambda parent_fd, child_name, _: os.rmdir(child_name, dir_fd=parent_fd)
            )
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory_fd)


def remove_entry(directory_fd: int, name: bytes) -> bool:
    """Remove a name if it exists, with everything below it. Return True if paths may have led through it."""
    entry = stat_entry(directory_fd, name)
    if entry is None:
        return False
    remove_tree(directory_fd, name)
    return not stat.S_ISREG(entry.st_mode)


def _remove_files(directory_fd: int) -> list[bytes]:
    """Remove everything in a directory except subdirectories, and return these."""
    if os.fstat(directory_fd).st_mode & _OWNER_MODE != _OWNER_MODE:
        os.fchmod(directory_fd, _OWNER_MODE)
    subdirectories: list[bytes] = []
    with os.scandir(directory_fd) as entries:
        for each in entries:
            if each.is_dir(follow_symlinks=False):
                subdirectories.append(os.fsencode(each.name))
            else:
                os.unlink(each.name, dir_fd=directory_fd)
    return subdirectories


def _open_readable(directory_fd: int, name: bytes) -> int:
    """Open a directory for reading; make it accessible to its owner if it is not."""
    try:
        return os.open(name, DIRECTORY_FLAGS, dir_fd=directory_fd)
    except PermissionError:
        chmod_nofollow(directory_fd, name, _OWNER_MODE)
        return os.open(name, DIRECTORY_FLAGS, dir_fd=directory_fd)


def _open_path_fd(directory_fd: int, name: bytes) -> int:
    return os.open(name, _PATH_FLAGS | os.O_NOFOLLOW, dir_fd=directory_fd)


def _replace_fd(old_fd: int, new_fd: int) -> int:
    os.close(old_fd)
    return new_fd


def open_file(root_fd: int, path: bytes) -> int:
    """Open a file below ``root_fd`` for reading, without waiting for a writer if it is a FIFO.

    Raises :class:`OSError` as ``open`` does.
    """
    return _open_in_root(root_fd, path, _FILE_IN_ROOT)


def _open_in_root(root_fd: int, path: bytes, how: _OpenHow = _DIRECTORY_IN_ROOT) -> int:
    """Open a path with ``root_fd`` as the root."""
    if b"\0" in path:
        raise OSError(errno.EINVAL, "a path with a NUL")
    for _ in range(_MAX_RETRIES):
        fd: int = _syscall(_OPENAT2, root_fd, path or b".", ctypes.byref(how), ctypes.sizeof(_OpenHow))
        if fd >= 0:
            return fd
        error_number = ctypes.get_errno()
        if error_number in (errno.ENOSYS, errno.EPERM):
            raise EmulatorError(
                f"this kernel does not allow openat2: {os.strerror(error_number)}",
                hint="inv run-emulated --runner=docker",
            )
        if error_number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(error_number, os.strerror(error_number))
