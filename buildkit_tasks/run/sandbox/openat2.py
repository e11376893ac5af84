"""The seam for files below one folder, which no name of an image leads out of.

The folder that an entry lies in is opened by ``openat2(2)`` with RESOLVE_IN_ROOT, so that absolute
symbolic links and ``..`` of the image lead where they would if it were the root; everything else is
done to one name in an open folder, which is never followed.
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
    "DirectoryFd",
    "RootedDirectory",
    "chmod_nofollow",
    "open_file",
    "remove_tree",
    "stat_entry",
    "walk_directories",
]

_OPENAT2 = 437  # on every architecture: include/uapi/asm-generic/unistd.h
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10  # include/uapi/linux/openat2.h
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_RETRIES = 10_000  # times that a rename elsewhere may come in between: openat2(2), EAGAIN
_MAX_LINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
_MAX_CACHED = 8  # folders: that of the entries, that of what they link to
_OWNER_MODE = 0o700


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)
_DIRECTORY_IN_ROOT = _OpenHow(_PATH_FLAGS, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
_FILE_IN_ROOT = _OpenHow(_FILE_FLAGS, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


class DirectoryFd(NamedTuple):
    """An open folder: its descriptor, for use below only, and its number in the file system."""

    fd: int
    inode: int


class RootedDirectory:
    """Opens the folders below ``place``; ``make`` makes one that is missing: a name in an open folder.

    Descriptors that it gives are its own, and good until the second
    :meth:`forget` from then: whoever has one may still use it after one.
    """

    def __init__(self, path: Path, make_directory: Callable[[int, bytes], object]) -> None:
        self.fd = os.open(path, DIRECTORY_FLAGS)
        self._make_directory = make_directory
        self._cached: dict[bytes, DirectoryFd] = {}
        self._retired_directories: list[DirectoryFd] = []

    def close(self) -> None:
        """Close everything that is open."""
        self.invalidate()
        self.invalidate()
        os.close(self.fd)

    def open_directory(self, path: bytes, *, create: bool = False) -> DirectoryFd:
        """The folder to which a path leads that counts from ``place``, and never out of it.

        Raises :class:`OSError` as ``open`` does. A folder that is missing can be made, also where a
        symbolic link leads to it.
        """
        cached = self._cached.get(path)
        return (
            cached
            if cached is not None
            else self._cache_directory(path, self._open_or_create(path, create=create))
        )

    def invalidate(self) -> None:
        """Open everything anew from now on: a folder or a link, of which paths were made, is gone."""
        for directory in self._retired_directories:
            os.close(directory.fd)
        self._retired_directories, self._cached = list(self._cached.values()), {}

    def _cache_directory(self, path: bytes, fd: int) -> DirectoryFd:
        if len(self._cached) >= _MAX_CACHED:
            self.invalidate()
        directory = self._cached[path] = DirectoryFd(fd, os.fstat(fd).st_ino)
        return directory

    def _open_or_create(self, path: bytes, *, create: bool) -> int:
        try:
            return _open_in_root(self.fd, path)
        except FileNotFoundError:
            if not create:
                raise
        return self._create_path(path)

    def _create_path(self, path: bytes) -> int:
        """Go the way that the kernel would, one name after the other, and make what is missing."""
        current_fd, depth, link_count, pending = os.dup(self.fd), 0, 0, path.split(b"/")[::-1]
        try:
            while pending:
                name = pending.pop()
                if name in (b"", b".") or (name == b".." and not depth):
                    continue
                target = None if name == b".." else self._resolve_component(current_fd, name)
                if target is None:
                    current_fd, depth = (
                        _replace_fd(current_fd, _open_path_fd(current_fd, name)),
                        depth + (-1 if name == b".." else 1),
                    )
                elif link_count < _MAX_LINKS:
                    if target.startswith(b"/"):
                        current_fd, depth = _replace_fd(current_fd, os.dup(self.fd)), 0
                    link_count, pending = link_count + 1, pending + target.split(b"/")[::-1]
                else:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # noqa: TRY301 - as the kernel's
        except BaseException:
            os.close(current_fd)
            raise
        return current_fd

    def _resolve_component(self, directory_fd: int, name: bytes) -> bytes | None:
        """Make that folder if there is nothing; where there is a symbolic link, its target."""
        try:
            mode = os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            self._make_directory(directory_fd, name)
            return None
        return os.readlink(name, dir_fd=directory_fd) if stat.S_ISLNK(mode) else None


def stat_entry(directory_fd: int, name: bytes) -> os.stat_result | None:
    """What stands under that name, links not followed; None if nothing does."""
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def chmod_nofollow(directory_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of what is no link: before Linux 6.6 the kernel has no call that follows none."""
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        Path(f"/proc/self/fd/{path_fd}").chmod(mode)
    finally:
        os.close(path_fd)


def walk_directories(
    directory_fd: int, enter: Callable[[int], list[bytes]], leave: Callable[[int, bytes, int], None]
) -> None:
    """Go through the folders below an open one, each of them left after all that are in it.

    ``enter`` gets an open folder and names those in it to go into; ``leave`` gets the folder above,
    the name in it and the folder itself. Two descriptors are enough for any depth. Nobody else may
    move folders there meanwhile: the way up is ``..``.
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
    """Remove what stands there, and all that is in it, whatever modes an image gave its folders."""
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


def _remove_files(directory_fd: int) -> list[bytes]:
    """Remove everything in a folder but folders, which are given."""
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
    """Open a folder to read it; one that its owner may not is made usable."""
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
    """Open for reading what a path leads to if ``root`` is the root; a FIFO does not make it wait.

    Raises :class:`OSError` as ``open`` does.
    """
    return _open_in_root(root_fd, path, _FILE_IN_ROOT)


def _open_in_root(root_fd: int, path: bytes, how: _OpenHow = _DIRECTORY_IN_ROOT) -> int:
    """A handle on the folder, or what ``how`` says, to which the path leads if ``root`` is the root."""
    if b"\0" in path:
        raise OSError(errno.EINVAL, "a path with a NUL")
    for _ in range(_MAX_RETRIES):
        fd: int = _syscall(_OPENAT2, root_fd, path or b".", ctypes.byref(how), ctypes.sizeof(_OpenHow))
        if fd >= 0:
            return fd
        error_number = ctypes.get_errno()
        if error_number in (errno.ENOSYS, errno.EPERM):
            raise EmulatorError(
                f"this kernel gives no openat2: {os.strerror(error_number)}",
                hint="run it with --runner=docker",
            )
        if error_number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(error_number, os.strerror(error_number))
