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

__all__ = ["EntryKind", "FolderEntry", "local_platforms", "walk_folder"]

_MAX_DEPTH = 256  # each level holds a file descriptor
_SYSTEMS = ("linux", "windows", "darwin", "freebsd")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class EntryKind(enum.Enum):
    """What a name in a folder is; ``OTHER`` are devices, FIFOs and sockets."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    OTHER = "other"


_KINDS = {stat.S_IFREG: EntryKind.FILE, stat.S_IFDIR: EntryKind.FOLDER, stat.S_IFLNK: EntryKind.SYMLINK}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEntry:
    """One name: relative to ``root``, with slashes. Hard links share ``device`` and ``inode``.

    ``target`` is a symbolic link's, as the image had it.
    """

    root: Path
    name: str
    kind: EntryKind
    mode: int
    size: int
    device: int
    inode: int
    target: str = ""

    def open(self) -> BinaryIO:
        """The bytes of a regular file: of the one that was found, or :class:`MalformedImage`."""
        if self.kind is not EntryKind.FILE:
            raise MalformedImage(f"{self.name} is no regular file")
        number = _open_beneath(self.root, self.name)
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (self.device, self.inode):
            os.close(number)
            raise _changed(self.name)
        return os.fdopen(number, "rb")


def local_platforms(path: Path) -> tuple[tuple[Platform | None, Path], ...]:
    """The folders that hold one platform's files each, sorted by name.

    Several platforms are written into folders such as ``linux_arm_v7``. A folder without such is
    one platform's own files: which platform, only its own name may tell. Raises
    :class:`UsageError` for a mixture, as two builds into one folder leave it.
    """
    with _scanned(path) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    platforms = {name: _platform_of(name) for name, is_folder in found if is_folder}
    if not any(platforms.values()):
        return ((_platform_of(path.absolute().name), path),)
    # Attestations lie beside them where buildx was told not to split.
    others = sorted(name for name, _ in found if not platforms.get(name) and not name.endswith(".json"))
    if others:
        names = sorted(name for name, platform in platforms.items() if platform)
        message = f"{path} holds the platform folders {', '.join(names)} and also {', '.join(others[:5])}"
        raise UsageError(message, hint=f"name one platform's: dir:{path / names[0]}")
    return tuple((platforms[name], path / name) for name in sorted(platforms))


def walk_folder(path: Path) -> Iterator[FolderEntry]:
    """Everything in the folder, sorted by name, a folder before what is in it.

    Raises :class:`LimitExceeded` for more entries or levels than an image may have, and
    :class:`MalformedImage` for another file system that is mounted in it.
    """
    root = _open_folder(path)
    try:
        device = os.fstat(root).st_dev
        for count, entry in enumerate(_walk(path, root, "", device, _own_prefix(path))):
            if count >= LIMITS.entries:
                raise LimitExceeded(f"{path} holds more than {LIMITS.entries} files")
            yield entry
    finally:
        os.close(root)


def _walk(root: Path, folder: int, above: str, device: int, prefix: str) -> Iterator[FolderEntry]:
    if above.count("/") > _MAX_DEPTH:
        raise LimitExceeded(f"{root} is more than {_MAX_DEPTH} folders deep")
    for part in _sorted_names(folder, root):
        entry = _look(root, folder, above, part, prefix)
        yield entry
        if entry.kind is not EntryKind.FOLDER:
            continue
        if entry.device != device:
            raise MalformedImage(f"{entry.name} is a file system of its own, mounted in {root}")
        with _Opened(part, folder, entry) as number:
            yield from _walk(root, number, f"{entry.name}/", device, prefix)


def _look(root: Path, folder: int, above: str, part: str, prefix: str) -> FolderEntry:
    name = above + part
    try:
        found = os.lstat(part, dir_fd=folder)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), EntryKind.OTHER)
        target = os.readlink(part, dir_fd=folder) if kind is EntryKind.SYMLINK else ""
    except OSError as error:
        raise _changed(name) from error
    return FolderEntry(
        root=root,
        name=name,
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        size=found.st_size if kind is EntryKind.FILE else 0,
        device=found.st_dev,
        inode=found.st_ino,
        target=_restored(target, prefix),
    )


def _restored(target: str, prefix: str) -> str:
    """A link's target in the image: buildx writes ``/linux_arm64/etc/x`` for ``/etc/x``."""
    if prefix and (target == prefix or target.startswith(f"{prefix}/")):
        return target.removeprefix(prefix) or "/"
    return target


def _own_prefix(path: Path) -> str:
    name = path.absolute().name
    return f"/{name}" if _platform_of(name) else ""


def _platform_of(name: str) -> Platform | None:
    """The platform that a folder's name says: ``linux_arm_v7``."""
    system, _, rest = name.partition("_")
    if system not in _SYSTEMS or not rest:
        return None
    try:
        known = Platform.parse("/".join(["linux", *rest.split("_")]))  # an architecture that there is
    except UsageError:
        return None
    return Platform.normalised(system, known.architecture, known.variant)


def _sorted_names(folder: int, root: Path) -> list[str]:
    names: list[str] = []
    with _scanned(folder) as entries:
        for entry in entries:
            if len(names) >= LIMITS.nodes:
                raise LimitExceeded(f"a folder in {root} holds more than {LIMITS.nodes} files")
            names.append(entry.name)
    return sorted(names)


def _scanned(place: Path | int) -> os._ScandirIterator[str]:
    try:
        return os.scandir(place)
    except OSError as error:
        raise UsageError(f"{place} cannot be read: {error.strerror}") from error


class _Opened:
    """A folder's descriptor for as long as it is walked."""

    def __init__(self, part: str, folder: int, entry: FolderEntry) -> None:
        self._number = _open_at(part, _FOLDER, folder, entry.name)

    def __enter__(self) -> int:
        return self._number

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


def _open_folder(path: Path) -> int:
    """The folder that the user named, which may be a link."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _open_beneath(root: Path, name: str) -> int:
    """Open a file below the folder with no link on the way."""
    *folders, last = name.split("/")
    here = _open_folder(root)
    try:
        for part in folders:
            below = _open_at(part, _FOLDER, here, name)
            os.close(here)
            here = below
        return _open_at(last, _FILE, here, name)
    finally:
        os.close(here)


def _open_at(part: str, flags: int, folder: int, name: str) -> int:
    try:
        return os.open(part, flags, dir_fd=folder)
    except PermissionError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise _changed(name) from error


def _changed(name: str) -> MalformedImage:
    return MalformedImage(f"{name} has changed while the folder was read")
