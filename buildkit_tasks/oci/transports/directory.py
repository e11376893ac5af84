"""A local output (``-o type=local``): the files of one platform, or a folder of them for each.

There are no manifests, so that this is no source. The files come from an image: links in them
are never followed, and of special files only the kind is told.
"""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DirectoryEntry", "FileKind", "find_platform_dirs", "walk_directory"]

_MAX_DEPTH = 256  # each level holds a file descriptor
_OS_NAMES = ("linux", "windows", "darwin", "freebsd")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileKind(enum.Enum):
    """What a name in a folder is; ``OTHER`` are devices, FIFOs and sockets."""

    FILE = "file"
    DIRECTORY = "folder"
    SYMLINK = "symlink"
    OTHER = "other"


_KIND_BY_FORMAT = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """One name: relative to ``root``, with slashes. Hard links share ``device`` and ``inode``.

    ``target`` is a symbolic link's, as the image had it.
    """

    root: Path
    name: str
    kind: FileKind
    mode: int
    size: int
    device: int
    inode: int
    target: str = ""

    def open(self) -> BinaryIO:
        """The bytes of a regular file: of the one that was found, or :class:`MalformedImage`."""
        if self.kind is not FileKind.FILE:
            raise MalformedImage(f"{self.name} is no regular file")
        fd = _open_nofollow(self.root, self.name)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != (self.device, self.inode):
            os.close(fd)
            raise _changed_error(self.name)
        return os.fdopen(fd, "rb")


def find_platform_dirs(path: Path) -> tuple[tuple[Platform | None, Path], ...]:
    """The folders that hold one platform's files each, sorted by name.

    Several platforms are written into folders such as ``linux_arm_v7``. A folder without such is
    one platform's own files: which platform, only its own name may tell. Raises
    :class:`UsageError` for a mixture, as two builds into one folder leave it.
    """
    with _scan_directory(path) as entries:
        children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    platforms = {name: _parse_dir_name(name) for name, is_dir in children if is_dir}
    if not any(platforms.values()):
        return ((_parse_dir_name(path.absolute().name), path),)
    # Attestations lie beside them where buildx was told not to split.
    others = sorted(name for name, _ in children if not platforms.get(name) and not name.endswith(".json"))
    if others:
        names = sorted(name for name, platform in platforms.items() if platform)
        message = f"{path} holds the platform folders {', '.join(names)} and also {', '.join(others[:5])}"
        raise UsageError(message, hint=f"name one platform's: dir:{path / names[0]}")
    return tuple((platforms[name], path / name) for name in sorted(platforms))


def walk_directory(path: Path) -> Iterator[DirectoryEntry]:
    """Everything in the folder, sorted by name, a folder before what is in it.

    Raises :class:`LimitExceeded` for more entries or levels than an image may have, and
    :class:`MalformedImage` for another file system that is mounted in it.
    """
    root_fd = _open_directory(path)
    try:
        device = os.fstat(root_fd).st_dev
        for count, entry in enumerate(_walk_tree(path, root_fd, "", device, _platform_prefix(path))):
            if count >= LIMITS.entries:
                raise LimitExceeded(f"{path} holds more than {LIMITS.entries} files")
            yield entry
    finally:
        os.close(root_fd)


def _walk_tree(root: Path, dir_fd: int, parent: str, device: int, prefix: str) -> Iterator[DirectoryEntry]:
    if parent.count("/") > _MAX_DEPTH:
        raise LimitExceeded(f"{root} is more than {_MAX_DEPTH} folders deep")
    for base_name in _list_names(dir_fd, root):
        entry = _read_entry(root, dir_fd, parent, base_name, prefix)
        yield entry
        if entry.kind is not FileKind.DIRECTORY:
            continue
        if entry.device != device:
            raise MalformedImage(f"{entry.name} is a file system of its own, mounted in {root}")
        with _OpenDirectory(base_name, dir_fd, entry) as child_fd:
            yield from _walk_tree(root, child_fd, f"{entry.name}/", device, prefix)


def _read_entry(root: Path, dir_fd: int, parent: str, base_name: str, prefix: str) -> DirectoryEntry:
    name = parent + base_name
    try:
        status = os.lstat(base_name, dir_fd=dir_fd)
        kind = _KIND_BY_FORMAT.get(stat.S_IFMT(status.st_mode), FileKind.OTHER)
        target = os.readlink(base_name, dir_fd=dir_fd) if kind is FileKind.SYMLINK else ""
    except OSError as error:
        raise _changed_error(name) from error
    return DirectoryEntry(
        root=root,
        name=name,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        size=status.st_size if kind is FileKind.FILE else 0,
        device=status.st_dev,
        inode=status.st_ino,
        target=_strip_platform_prefix(target, prefix),
    )


def _strip_platform_prefix(target: str, prefix: str) -> str:
    """A link's target in the image: buildx writes ``/linux_arm64/etc/x`` for ``/etc/x``."""
    if prefix and (target == prefix or target.startswith(f"{prefix}/")):
        return target.removeprefix(prefix) or "/"
    return target


def _platform_prefix(path: Path) -> str:
    name = path.absolute().name
    return f"/{name}" if _parse_dir_name(name) else ""


def _parse_dir_name(name: str) -> Platform | None:
    """The platform that a folder's name says: ``linux_arm_v7``."""
    os_name, _, rest = name.partition("_")
    if os_name not in _OS_NAMES or not rest:
        return None
    try:
        platform = Platform.parse("/".join(["linux", *rest.split("_")]))  # an architecture that there is
    except UsageError:
        return None
    return Platform.normalize(os_name, platform.architecture, platform.variant)


def _list_names(dir_fd: int, root: Path) -> list[str]:
    names: list[str] = []
    with _scan_directory(dir_fd) as entries:
        for entry in entries:
            if len(names) >= LIMITS.nodes:
                raise LimitExceeded(f"a folder in {root} holds more than {LIMITS.nodes} files")
            names.append(entry.name)
    return sorted(names)


def _scan_directory(directory: Path | int) -> os._ScandirIterator[str]:
    try:
        return os.scandir(directory)
    except OSError as error:
        raise UsageError(f"{directory} cannot be read: {error.strerror}") from error


class _OpenDirectory:
    """A folder's descriptor for as long as it is walked."""

    def __init__(self, base_name: str, dir_fd: int, entry: DirectoryEntry) -> None:
        self._fd = _open_at(base_name, _DIRECTORY_FLAGS, dir_fd, entry.name)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _open_directory(path: Path) -> int:
    """The folder that the user named, which may be a link."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _open_nofollow(root: Path, name: str) -> int:
    """Open a file below the folder with no link on the way."""
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
    return MalformedImage(f"{name} has changed while the folder was read")
