"""Walk a local output (``-o type=local``): the files of one platform, or a directory for each platform.

It has no manifests, so it is not a :class:`~buildkit_tasks.oci.source.Source`. The files come from an
untrusted image: links are never followed and special files never opened.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.rootfs import FileType
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DirectoryEntry", "find_platform_dirs", "walk_directory"]

_MAX_DEPTH = 256  # directories; each level needs a file descriptor
_OS_NAMES = ("linux", "windows", "darwin", "freebsd")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


_TYPE_BY_FORMAT = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """A file of a local output; ``name`` is its path relative to ``root``.

    Hard links have the same ``device`` and ``inode``. ``target`` is the target of a symbolic link in the
    image. ``kind`` is OTHER for devices, FIFOs and sockets.
    """

    root: Path
    name: str
    kind: FileType
    mode: int
    size: int
    device: int
    inode: int
    target: str = ""

    def open(self) -> BinaryIO:
        """Open a regular file. Raises :class:`MalformedImage` if it is not the file that was listed."""
        if self.kind is not FileType.FILE:
            raise MalformedImage(f"{self.name} is not a regular file")
        fd = _open_nofollow(self.root, self.name)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != (self.device, self.inode):
            os.close(fd)
            raise _changed_error(self.name)
        return os.fdopen(fd, "rb")


def find_platform_dirs(path: Path) -> tuple[tuple[Platform | None, Path], ...]:
    """Return the directory of each platform, sorted by name.

    buildx writes several platforms into directories such as ``linux_arm_v7``. A directory without such
    entries has the files of one platform, which is None unless the directory's own name states it. Raises
    :class:`UsageError` for a mixture, which two builds into one directory produce.
    """
    with _scan_directory(path) as entries:
        children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    platforms = {name: _parse_dir_name(name) for name, is_dir in children if is_dir}
    if not any(platforms.values()):
        return ((_parse_dir_name(path.absolute().name), path),)
    # Attestations are beside the platforms' directories if buildx does not split them by platform.
    others = sorted(name for name, _ in children if not platforms.get(name) and not name.endswith(".json"))
    if others:
        names = sorted(name for name, platform in platforms.items() if platform)
        message = f"{path} has the platform directories {', '.join(names)} and also {', '.join(others[:5])}"
        raise UsageError(message, hint=f"use the directory of one platform: dir:{path / names[0]}")
    return tuple((platforms[name], path / name) for name in sorted(platforms))


def walk_directory(path: Path) -> Iterator[DirectoryEntry]:
    """Yield everything below the directory, sorted by name, a directory before its contents.

    Raises :class:`LimitExceeded` for more entries or levels than allowed, and :class:`MalformedImage` for
    another file system that is mounted below it.
    """
    root_fd = _open_directory(path)
    try:
        device = os.fstat(root_fd).st_dev
        for count, entry in enumerate(_walk_tree(path, root_fd, "", device, _platform_prefix(path))):
            if count >= LIMITS.entries:
                raise LimitExceeded(f"{path} has more than {LIMITS.entries} files")
            yield entry
    finally:
        os.close(root_fd)


def _walk_tree(root: Path, dir_fd: int, parent: str, device: int, prefix: str) -> Iterator[DirectoryEntry]:
    if parent.count("/") > _MAX_DEPTH:
        raise LimitExceeded(f"{root} is more than {_MAX_DEPTH} directories deep")
    for base_name in _list_names(dir_fd, root):
        entry = _read_entry(root, dir_fd, parent, base_name, prefix)
        yield entry
        if entry.kind is not FileType.DIRECTORY:
            continue
        if entry.device != device:
            raise MalformedImage(f"{entry.name} is another file system, mounted in {root}")
        child_fd = _open_at(base_name, _DIRECTORY_FLAGS, dir_fd, entry.name)
        try:
            yield from _walk_tree(root, child_fd, f"{entry.name}/", device, prefix)
        finally:
            os.close(child_fd)


def _read_entry(root: Path, dir_fd: int, parent: str, base_name: str, prefix: str) -> DirectoryEntry:
    name = parent + base_name
    try:
        status = os.lstat(base_name, dir_fd=dir_fd)
        kind = _TYPE_BY_FORMAT.get(stat.S_IFMT(status.st_mode), FileType.OTHER)
        target = os.readlink(base_name, dir_fd=dir_fd) if kind is FileType.SYMLINK else ""
    except OSError as error:
        raise _changed_error(name) from error
    return DirectoryEntry(
        root=root,
        name=name,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        size=status.st_size if kind is FileType.FILE else 0,
        device=status.st_dev,
        inode=status.st_ino,
        target=_strip_platform_prefix(target, prefix),
    )


def _strip_platform_prefix(target: str, prefix: str) -> str:
    """Return a link's target in the image: buildx writes ``/linux_arm64/etc/x`` for ``/etc/x``."""
    if prefix and (target == prefix or target.startswith(f"{prefix}/")):
        return target.removeprefix(prefix) or "/"
    return target


def _platform_prefix(path: Path) -> str:
    name = path.absolute().name
    return f"/{name}" if _parse_dir_name(name) else ""


def _parse_dir_name(name: str) -> Platform | None:
    """Return the platform of a directory name such as ``linux_arm_v7``; None if it is not one."""
    os_name, _, rest = name.partition("_")
    if os_name not in _OS_NAMES or not rest:
        return None
    try:
        platform = Platform.parse("/".join(["linux", *rest.split("_")]))  # rejects unknown architectures
    except UsageError:
        return None
    return Platform.normalize(os_name, platform.architecture, platform.variant)


def _list_names(dir_fd: int, root: Path) -> list[str]:
    names: list[str] = []
    with _scan_directory(dir_fd) as entries:
        for entry in entries:
            if len(names) >= LIMITS.nodes:
                raise LimitExceeded(f"a directory in {root} has more than {LIMITS.nodes} files")
            names.append(entry.name)
    return sorted(names)


def _scan_directory(directory: Path | int) -> os._ScandirIterator[str]:
    try:
        return os.scandir(directory)
    except OSError as error:
        raise UsageError(f"{directory} cannot be read: {error.strerror}") from error


def _open_directory(path: Path) -> int:
    """Open the directory that the user named, which may be a symbolic link."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _open_nofollow(root: Path, name: str) -> int:
    """Open a file below the root without following a symbolic link in any component."""
    *parents, base_name = name.split("/")
    dir_fd = _open_directory(root)
    try:
        for parent in parents:
            child_fd = _open_at(parent, _DIRECTORY_FLAGS, dir_fd, name)
            os.close(dir_fd)
            dir_fd = child_fd
        return _open_at(base_name, _FILE_FLAGS, dir_fd, name)
    finally:
        os.close(dir_fd)


def _open_at(base_name: str, flags: int, dir_fd: int, name: str) -> int:
    try:
        return os.open(base_name, flags, dir_fd=dir_fd)
    except PermissionError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise _changed_error(name) from error


def _changed_error(name: str) -> MalformedImage:
    return MalformedImage(f"{name} has changed while the directory was read")
