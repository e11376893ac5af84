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

__all__ = ["READ", "Beneath", "Folder", "chmod", "descend", "lookup", "open_file", "remove"]

_OPENAT2 = 437  # on every architecture: include/uapi/asm-generic/unistd.h
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10  # include/uapi/linux/openat2.h
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATIENCE = 10_000  # times that a rename elsewhere may come in between: openat2(2), EAGAIN
_MAX_LINKS = 40  # MAXSYMLINKS in Linux's include/linux/namei.h
_KEPT_OPEN = 8  # folders: that of the entries, that of what they link to
_USABLE = 0o700


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)
_IN_ROOT = _How(_HANDLE, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
_FILE_IN_ROOT = _How(_FILE, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


class Folder(NamedTuple):
    """An open folder: its descriptor, for use below only, and its number in the file system."""

    descriptor: int
    number: int


class Beneath:
    """Opens the folders below ``place``; ``make`` makes one that is missing: a name in an open folder.

    Descriptors that it gives are its own, and good until the second
    :meth:`forget` from then: whoever has one may still use it after one.
    """

    def __init__(self, place: Path, make: Callable[[int, bytes], object]) -> None:
        self.descriptor = os.open(place, READ)
        self._make = make
        self._open: dict[bytes, Folder] = {}
        self._retired: list[Folder] = []

    def close(self) -> None:
        """Close everything that is open."""
        self.forget()
        self.forget()
        os.close(self.descriptor)

    def folder(self, path: bytes, *, make: bool = False) -> Folder:
        """The folder to which a path leads that counts from ``place``, and never out of it.

        Raises :class:`OSError` as ``open`` does. A folder that is missing can be made, also where a
        symbolic link leads to it.
        """
        found = self._open.get(path)
        return found if found is not None else self._keep(path, self._reach(path, make=make))

    def forget(self) -> None:
        """Open everything anew from now on: a folder or a link, of which paths were made, is gone."""
        for folder in self._retired:
            os.close(folder.descriptor)
        self._retired, self._open = list(self._open.values()), {}

    def _keep(self, path: bytes, descriptor: int) -> Folder:
        if len(self._open) >= _KEPT_OPEN:
            self.forget()
        found = self._open[path] = Folder(descriptor, os.fstat(descriptor).st_ino)
        return found

    def _reach(self, path: bytes, *, make: bool) -> int:
        try:
            return _open_in_root(self.descriptor, path)
        except FileNotFoundError:
            if not make:
                raise
        return self._walk(path)

    def _walk(self, path: bytes) -> int:
        """Go the way that the kernel would, one name after the other, and make what is missing."""
        here, depth, links, todo = os.dup(self.descriptor), 0, 0, path.split(b"/")[::-1]
        try:
            while todo:
                name = todo.pop()
                if name in (b"", b".") or (name == b".." and not depth):
                    continue
                target = None if name == b".." else self._step(here, name)
                if target is None:
                    here, depth = _closed(here, _handle(here, name)), depth + (-1 if name == b".." else 1)
                elif links < _MAX_LINKS:
                    if target.startswith(b"/"):
                        here, depth = _closed(here, os.dup(self.descriptor)), 0
                    links, todo = links + 1, todo + target.split(b"/")[::-1]
                else:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # noqa: TRY301 - as the kernel's
        except BaseException:
            os.close(here)
            raise
        return here

    def _step(self, here: int, name: bytes) -> bytes | None:
        """Make that folder if there is nothing; where there is a symbolic link, its target."""
        try:
            mode = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
        except FileNotFoundError:
            self._make(here, name)
            return None
        return os.readlink(name, dir_fd=here) if stat.S_ISLNK(mode) else None


def lookup(folder: int, name: bytes) -> os.stat_result | None:
    """What stands under that name, links not followed; None if nothing does."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def chmod(folder: int, name: bytes, mode: int) -> None:
    """Set the mode of what is no link: before Linux 6.6 the kernel has no call that follows none."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        Path(f"/proc/self/fd/{handle}").chmod(mode)
    finally:
        os.close(handle)


def descend(
    folder: int, enter: Callable[[int], list[bytes]], leave: Callable[[int, bytes, int], None]
) -> None:
    """Go through the folders below an open one, each of them left after all that are in it.

    ``enter`` gets an open folder and names those in it to go into; ``leave`` gets the folder above,
    the name in it and the folder itself. Two descriptors are enough for any depth. Nobody else may
    move folders there meanwhile: the way up is ``..``.
    """
    here = os.dup(folder)
    try:
        trail = [(b"", enter(here))]
        while True:
            name, todo = trail[-1]
            if todo:
                name = todo.pop()
                here = _closed(here, _readable(here, name))
                trail.append((name, enter(here)))
                continue
            trail.pop()
            if not trail:
                return
            left, here = here, os.open(b"..", READ, dir_fd=here)
            try:
                leave(here, name, left)
            finally:
                os.close(left)
    finally:
        os.close(here)


def remove(folder: int, name: bytes) -> None:
    """Remove what stands there, and all that is in it, whatever modes an image gave its folders."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        descriptor = _readable(folder, name)
        try:
            descend(descriptor, _emptied, lambda above, below, _: os.rmdir(below, dir_fd=above))
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=folder)


def _emptied(here: int) -> list[bytes]:
    """Remove everything in a folder but folders, which are given."""
    if os.fstat(here).st_mode & _USABLE != _USABLE:
        os.fchmod(here, _USABLE)
    below: list[bytes] = []
    with os.scandir(here) as found:
        for each in found:
            if each.is_dir(follow_symlinks=False):
                below.append(os.fsencode(each.name))
            else:
                os.unlink(each.name, dir_fd=here)
    return below


def _readable(folder: int, name: bytes) -> int:
    """Open a folder to read it; one that its owner may not is made usable."""
    try:
        return os.open(name, READ, dir_fd=folder)
    except PermissionError:
        chmod(folder, name, _USABLE)
        return os.open(name, READ, dir_fd=folder)


def _handle(folder: int, name: bytes) -> int:
    return os.open(name, _HANDLE | os.O_NOFOLLOW, dir_fd=folder)


def _closed(old: int, new: int) -> int:
    os.close(old)
    return new


def open_file(root: int, path: bytes) -> int:
    """Open for reading what a path leads to if ``root`` is the root; a FIFO does not make it wait.

    Raises :class:`OSError` as ``open`` does.
    """
    return _open_in_root(root, path, _FILE_IN_ROOT)


def _open_in_root(root: int, path: bytes, how: _How = _IN_ROOT) -> int:
    """A handle on the folder, or what ``how`` says, to which the path leads if ``root`` is the root."""
    if b"\0" in path:
        raise OSError(errno.EINVAL, "a path with a NUL")
    for _ in range(_PATIENCE):
        descriptor: int = _syscall(_OPENAT2, root, path or b".", ctypes.byref(how), ctypes.sizeof(_How))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EPERM):
            raise EmulatorError(
                f"this kernel gives no openat2: {os.strerror(number)}", hint="run it with --runner=docker"
            )
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))
