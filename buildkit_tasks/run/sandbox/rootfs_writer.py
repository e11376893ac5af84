"""A root file system in a folder while layers are laid over one another in it.

OCI image specification, "Image Layer Filesystem Changeset". Where it leaves something open this does
as containerd does: an entry replaces whatever stands under its name, be it a link to a folder where
the entry is a folder, and only a folder upon a folder leaves what is in it; the parents of an entry
may be symbolic links of the image, which lead where they would inside it. Unlike there, no file keeps
a setuid or setgid bit and no device is made: what is unpacked here lies on the user's own disk.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Self

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK
from buildkit_tasks.run.sandbox.openat2 import Beneath, Folder, chmod, descend, lookup, remove
from buildkit_tasks.run.sandbox.whiteouts import OPAQUE, WHITEOUT, Mine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buildkit_tasks.oci.layers.packed_names import Names
    from buildkit_tasks.oci.layers.tar import Entry, OwnedReader, Owner
    from buildkit_tasks.oci.limits import Limits

__all__ = ["FULL", "DiskFull", "Tree"]

_CONTIGUOUS, _CHARACTERS, _BLOCKS, _FIFO = "7", "3", "4", "6"
_PATH_MAX = 4095  # bytes without the NUL: include/uapi/linux/limits.h
_SHORT = _PATH_MAX // 4  # letters, which take no more than four bytes each
_PIECE = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS, _FOLDER_MODE, _FILE_BITS, _FOLDER_BITS = 0o700, 0o755, 0o777, 0o1777
_IDS, _NOBODY = 1 << 16, 65534
_LAST_TIME = (1 << 63) - 1  # nanoseconds: what Go, and so containerd, can tell
_NODE = 1024  # bytes that a name takes besides its data, roughly
_MAX_TWINS = 64  # kinds of symbolic links in one folder
_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"
_MOUNT_POINTS = {b"proc": _FOLDER_MODE, b"sys": _FOLDER_MODE, b"dev": _FOLDER_MODE, b"tmp": 0o1777}
FULL = frozenset([errno.ENOSPC, errno.EDQUOT])
_TOO_MUCH = frozenset([errno.EFBIG, errno.EMLINK])
# What a kernel answers to names that an image should not have.
_BAD_NAME = frozenset(
    [errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EINVAL, errno.EILSEQ]
)


class DiskFull(Exception):
    """At least so many bytes more are needed."""

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


class Tree:
    """Takes layers, lowest first, and is completed then. A context manager.

    ``size`` is about how much it takes on disk. Until the end its owner can use every folder; modes
    and times of folders come last. Raises :class:`MalformedImage`, :class:`LimitExceeded`,
    :class:`DiskFull`, and :class:`OSError` for a disk that cannot be written.
    """

    def __init__(self, place: Path, shift: int | None, limits: Limits) -> None:
        self.size = 0
        self._shift = shift
        self._names_left, self._folders_left = limits.entries, limits.nodes
        self._seals: dict[int, tuple[int, int]] = {}  # modes and times of folders, by their numbers
        self._mine, self._lowest = Mine(), True
        self._beneath = Beneath(place, self._make_folder)
        self._path: str | None = None  # of the open folder, as entries name it
        self._here = Folder(self._beneath.descriptor, 0)
        self._noted: Names | None = None
        self._twins: dict[tuple[str, Owner], bytes] = {}  # symbolic links in the open folder
        self._makers: dict[str, Callable[[bytes, Entry, OwnedReader], None]] = {
            REGULAR: self._file,
            _CONTIGUOUS: self._file,
            DIRECTORY: self._folder,
            SYMLINK: self._symlink,
            HARD_LINK: self._hard_link,
            _FIFO: self._fifo,
            _CHARACTERS: self._nothing,
            _BLOCKS: self._nothing,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._beneath.close()

    def add(self, reader: OwnedReader) -> None:
        """Lay a layer over what there is."""
        self._mine, self._lowest, self._path = Mine(lowest=self._lowest), False, None
        for entry in reader:
            folder, _, name = entry.name.rpartition("/")
            if name in ("", ".", ".."):
                folder, name = _split(entry.name)
                if not name:
                    continue  # the root itself: as with containerd, its mode is not the image's
            try:
                if name.startswith(WHITEOUT):
                    self._whiteout(folder, name)
                elif self._enter(folder):
                    self._put(name, entry, reader)
            except OSError as error:
                raise _refused(f"the entry {entry.name!r}", error) from error

    def complete(self, working_dir: str) -> None:
        """Make what a container needs and an image may lack, since the root cannot be written then."""
        self._mine = Mine()
        try:
            self._own_root()
            for name, mode in _MOUNT_POINTS.items():
                self._mount_point(name, mode)
            self._hosts()
            self._beneath.folder(_raw(working_dir), make=True)
        except OSError as error:
            raise _refused(f"the working directory {working_dir!r}", error) from error
        descend(self._beneath.descriptor, _folders_in, self._seal)

    def _enter(self, folder: str, *, make: bool = True) -> bool:
        """Open the folder of an entry; False for what AUFS notes for itself, below a whiteout."""
        if folder == self._path:
            return True
        if ".." in folder.split("/"):
            raise MalformedImage(f"an entry in {folder!r} leads out of its folder")
        if f"/{WHITEOUT}" in f"/{folder}":
            return False
        self._path, self._twins = None, {}
        self._here = self._beneath.folder(_raw(folder), make=make)
        self._path, self._noted = folder, self._mine.noted_in(self._here.number)
        return True

    def _whiteout(self, folder: str, name: str) -> None:
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise MalformedImage(f"the whiteout {name!r} hides no name")
        try:
            there = self._enter(folder, make=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not there:
            return
        moved = self._mine.hide_all(self._here) if name == OPAQUE else self._mine.hide(self._here, hidden)
        if moved:
            self._moved()

    def _put(self, name: str, entry: Entry, reader: OwnedReader) -> None:
        """Make an entry in the open folder, in the place of whatever stands there."""
        make = self._makers.get(entry.type)
        if make is None:
            raise MalformedImage(f"the entry {entry.name!r} is of the unknown kind {entry.type!r}")
        if len(entry.name) > _SHORT and len(_raw(entry.name)) > _PATH_MAX:
            raise MalformedImage(f"the entry {entry.name!r} has a path longer than Linux takes")
        raw = _raw(name)
        self._count(entry.size + _NODE)
        try:
            make(raw, entry, reader)
        except FileExistsError:
            self._clear(raw)
            make(raw, entry, reader)
        if self._noted is not None:
            self._noted.add(name, 0)

    def _count(self, size: int) -> None:
        self.size += size
        self._names_left -= 1
        if self._names_left < 0:
            raise LimitExceeded("the image has too many files")

    def _clear(self, name: bytes) -> None:
        """Remove what stands in the open folder under that name."""
        found = lookup(self._here.descriptor, name)
        if found is None:
            return
        remove(self._here.descriptor, name)
        if not stat.S_ISREG(found.st_mode):
            self._moved()

    def _moved(self) -> None:
        """A folder or a link is gone: paths may lead elsewhere from now on."""
        self._beneath.forget()
        self._path = None

    # What makes an entry of each kind; FileExistsError where something else stands.

    def _file(self, name: bytes, entry: Entry, reader: OwnedReader) -> None:
        descriptor = os.open(name, _NEW, _OURS, dir_fd=self._here.descriptor)
        try:
            if entry.size:
                _copy(reader, descriptor)
            owner = reader.owner()
            if self._shift is not None:
                os.fchown(descriptor, *_shifted(owner, self._shift))
            os.fchmod(descriptor, entry.mode & _FILE_BITS)
            os.utime(descriptor, ns=_times(owner))
        finally:
            os.close(descriptor)

    def _folder(self, name: bytes, entry: Entry, reader: OwnedReader) -> None:
        try:
            number = self._make_folder(self._here.descriptor, name)
        except FileExistsError:
            found = lookup(self._here.descriptor, name)
            if found is None or not stat.S_ISDIR(found.st_mode):
                raise
            number = found.st_ino
        owner = reader.owner()
        self._own(name, owner)
        self._seals[number] = (entry.mode & _FOLDER_BITS, _times(owner)[0])

    def _symlink(self, name: bytes, entry: Entry, reader: OwnedReader) -> None:
        """A symbolic link: of hundreds of equal ones in a folder, as busybox has them, one with many names.

        A new inode for each takes ext4 up to thirty times as long, where many were freed a moment ago.
        """
        alike = entry.linkname, reader.owner()
        twin, here = self._twins.get(alike), self._here.descriptor
        if twin is not None and _linked(here, twin, name):
            return
        os.symlink(_raw(entry.linkname), name, dir_fd=here)
        self._finish(name, reader)
        if len(self._twins) < _MAX_TWINS or twin is not None:
            self._twins[alike] = name

    def _hard_link(self, name: bytes, entry: Entry, _reader: OwnedReader) -> None:
        """Another name for a file of this layer or of a lower one; the header's mode and owner are its."""
        folder, _, base = entry.linkname.rpartition("/")
        target, here = _raw(base), self._here.descriptor
        try:
            above = self._beneath.folder(_raw(folder)).descriptor
            found = os.stat(target, dir_fd=above, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise _no_file(entry) from None
        if stat.S_ISDIR(found.st_mode):
            raise _no_file(entry)
        there = lookup(here, name)
        if there is None or there.st_ino != found.st_ino:
            os.link(target, name, src_dir_fd=above, dst_dir_fd=here, follow_symlinks=False)

    def _fifo(self, name: bytes, entry: Entry, reader: OwnedReader) -> None:
        os.mkfifo(name, _OURS, dir_fd=self._here.descriptor)
        self._finish(name, reader)
        chmod(self._here.descriptor, name, entry.mode & _FILE_BITS)

    def _nothing(self, name: bytes, _entry: Entry, _reader: OwnedReader) -> None:
        """A device is not made; what stood there is gone nevertheless."""
        self._clear(name)

    def _finish(self, name: bytes, reader: OwnedReader) -> None:
        owner = reader.owner()
        self._own(name, owner)
        os.utime(name, ns=_times(owner), dir_fd=self._here.descriptor, follow_symlinks=False)

    def _own(self, name: bytes, owner: Owner) -> None:
        if self._shift is not None:
            ids = _shifted(owner, self._shift)
            os.chown(name, *ids, dir_fd=self._here.descriptor, follow_symlinks=False)

    def _make_folder(self, above: int, name: bytes) -> int:
        """Make a folder, of an entry or on the way to one; gives its number."""
        if not self._folders_left:
            raise LimitExceeded("the image has too many folders")
        os.mkdir(name, _OURS, dir_fd=above)
        self._folders_left -= 1
        self._count(4 * _NODE)
        if self._shift is not None:
            os.chown(name, self._shift, self._shift, dir_fd=above, follow_symlinks=False)
        number = os.stat(name, dir_fd=above, follow_symlinks=False).st_ino
        self._seals.pop(number, None)  # of another folder, which is gone
        self._mine.add_whole(number)
        return number

    # The end.

    def _own_root(self) -> None:
        root = self._beneath.descriptor
        os.fchmod(root, _FOLDER_MODE)
        if self._shift is not None:
            os.fchown(root, self._shift, self._shift)

    def _mount_point(self, name: bytes, mode: int) -> None:
        """A folder of that name in the root itself: mounting would follow a link."""
        root = self._beneath.descriptor
        found = lookup(root, name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            return
        if found is not None:
            remove(root, name)
            self._moved()
        self._seals[self._make_folder(root, name)] = (mode, 0)

    def _hosts(self) -> None:
        """The names of the host itself, where the image says nothing: BuildKit leaves an empty file."""
        try:
            etc = self._beneath.folder(b"etc", make=True).descriptor
        except OSError as error:
            if error.errno in _BAD_NAME:
                return  # its /etc is no folder
            raise
        found = lookup(etc, b"hosts")
        if found is not None and (found.st_size or not stat.S_ISREG(found.st_mode)):
            return
        if found is not None:
            os.unlink(b"hosts", dir_fd=etc)  # the empty file may have other names
        descriptor = os.open(b"hosts", _NEW, _OURS, dir_fd=etc)
        try:
            os.write(descriptor, _HOSTS)
            os.fchmod(descriptor, 0o644)
            if self._shift is not None:
                os.fchown(descriptor, self._shift, self._shift)
        finally:
            os.close(descriptor)

    def _seal(self, _above: int, _name: bytes, here: int) -> None:
        mode, mtime = self._seals.get(os.fstat(here).st_ino, (_FOLDER_MODE, 0))
        os.fchmod(here, mode)
        os.utime(here, ns=(mtime, mtime))


def _split(path: str) -> tuple[str, str]:
    """Folder and name of a path that ends in a slash or a dot; no name for the root."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[-1] == "..":
        raise MalformedImage(f"the entry {path!r} leads out of its folder")
    return "/".join(parts[:-1]), parts[-1] if parts else ""


def _copy(reader: OwnedReader, descriptor: int) -> None:
    while data := reader.read(_PIECE):
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except OSError as error:
                if error.errno in FULL:
                    raise DiskFull(len(rest) + reader.left) from error
                raise


def _linked(here: int, old: bytes, new: bytes) -> bool:
    """Give a symbolic link another name; False where the file system has its limits."""
    try:
        os.link(old, new, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _times(owner: Owner) -> tuple[int, int]:
    """Access and change time; to containerd, what Go cannot tell is the beginning of time."""
    known = owner.mtime if 0 <= owner.mtime <= _LAST_TIME else 0
    return known, known


def _shifted(owner: Owner, shift: int) -> tuple[int, int]:
    uid, gid = (number if 0 <= number < _IDS else _NOBODY for number in owner[:2])
    return shift + uid, shift + gid


def _folders_in(here: int) -> list[bytes]:
    with os.scandir(here) as found:
        return [os.fsencode(each.name) for each in found if each.is_dir(follow_symlinks=False)]


def _no_file(entry: Entry) -> MalformedImage:
    return MalformedImage(f"{entry.name!r} is a hard link to {entry.linkname!r}, which is no file here")


def _raw(name: str) -> bytes:
    return name.encode() if name.isascii() else name.encode("utf-8", "surrogateescape")


def _refused(what: str, error: OSError) -> Exception:
    """What it means that a kernel would not do something that an image asks for."""
    if error.errno in FULL:
        return DiskFull(_NODE)
    if error.errno in _TOO_MUCH:
        return LimitExceeded(f"{what}: {error.strerror}")
    if error.errno in _BAD_NAME:
        return MalformedImage(f"{what} cannot be: {error.strerror}")
    return error
