"""Apply layers to a directory, which becomes the root file system of an image.

OCI image specification, layer.md, "Image Layer Filesystem Changeset". What the specification leaves open is
done as containerd does it, which unpacks each layer by itself and lets overlayfs merge them: an entry
replaces what has its name before, except that a directory entry keeps an existing directory and its content
(but replaces a symbolic link to one); the parents of an entry may be symbolic links of the same layer, which
are resolved inside the root, while links and files of lower layers are replaced by directories. Unlike
containerd, setuid and setgid bits are dropped and no device is created, since the result lies on the user's
own disk.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Self

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.rootfs import (
    OPAQUE_ROOT,
    OPAQUE_WHITEOUT,
    WHITEOUT_PREFIX,
    hard_link_error,
    split_path,
)
from buildkit_tasks.oci.layers.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK
from buildkit_tasks.run.sandbox.openat2 import (
    DirectoryFd,
    RootedDirectory,
    chmod_nofollow,
    remove_entry,
    remove_tree,
    stat_entry,
    walk_directories,
)
from buildkit_tasks.run.sandbox.whiteouts import LayerEntries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buildkit_tasks.oci.layers.packed_names import PackedNames
    from buildkit_tasks.oci.layers.tar import EntryOwner, OwnerTarReader, TarEntry
    from buildkit_tasks.oci.limits import Limits

__all__ = ["DISK_FULL_ERRORS", "DiskFull", "RootfsWriter"]

_CONTIGUOUS, _CHAR_DEVICE, _BLOCK_DEVICE, _FIFO = "7", "3", "4", "6"
_PATH_MAX = 4095  # bytes, without the NUL: include/uapi/linux/limits.h
_SAFE_LENGTH = _PATH_MAX // 4  # characters, of at most four bytes each in UTF-8
_CHUNK_SIZE = 1 << 20
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE_MODE, _DIRECTORY_MODE, _FILE_MODE_MASK, _DIRECTORY_MODE_MASK = 0o700, 0o755, 0o777, 0o1777
_ID_COUNT, _NOBODY = 1 << 16, 65534
_MAX_MTIME = (1 << 63) - 1  # nanoseconds: the range of Go's time, and so of containerd
_INODE_BYTES = 1024  # bytes that a name takes on disk besides its data, roughly
_MAX_SHARED_SYMLINKS = 64  # different symbolic links of one directory
_DEFAULT_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"
_MOUNT_POINTS = {b"proc": _DIRECTORY_MODE, b"sys": _DIRECTORY_MODE, b"dev": _DIRECTORY_MODE, b"tmp": 0o1777}
DISK_FULL_ERRORS = frozenset([errno.ENOSPC, errno.EDQUOT])
_LIMIT_ERRORS = frozenset([errno.EFBIG, errno.EMLINK])
# Errors of the kernel for names that an image must not have.
_BAD_NAME_ERRORS = frozenset(
    [errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EINVAL, errno.EILSEQ]
)


class DiskFull(Exception):
    """The disk is full: at least ``missing_bytes`` more are needed."""

    def __init__(self, missing_bytes: int) -> None:
        super().__init__(missing_bytes)
        self.missing_bytes = missing_bytes


class RootfsWriter:
    """Writes a root file system: :meth:`apply_layer` for each layer, the lowest first, then :meth:`complete`.

    A context manager. ``size`` is roughly the number of bytes on disk. Modes and times of directories are
    set by :meth:`complete`; until then the owner can write to all of them. Raises :class:`MalformedImage`,
    :class:`LimitExceeded`, :class:`DiskFull`, and :class:`OSError` if the disk cannot be written.
    """

    def __init__(self, path: Path, id_offset: int | None, limits: Limits) -> None:
        self.size = 0
        self._id_offset = id_offset
        self._entries_left, self._directories_left = limits.entries, limits.nodes
        self._directory_metadata: dict[int, tuple[int, int]] = {}  # mode and mtime by inode
        self._layer_entries, self._is_lowest = LayerEntries(), True
        self._root = RootedDirectory(path, self._make_directory, self._is_lower)
        self._root_inode = os.fstat(self._root.fd).st_ino
        self._parent_path: str | None = None  # as written in entries
        self._parent = DirectoryFd(self._root.fd, 0)
        self._parent_names: PackedNames | None = None
        self._shared_symlinks: dict[tuple[str, EntryOwner], bytes] = {}  # in the parent
        self._writers: dict[str, Callable[[bytes, TarEntry, OwnerTarReader], None]] = {
            REGULAR: self._write_file,
            _CONTIGUOUS: self._write_file,
            DIRECTORY: self._write_directory,
            SYMLINK: self._write_symlink,
            HARD_LINK: self._write_hard_link,
            _FIFO: self._write_fifo,
            _CHAR_DEVICE: self._skip_device,
            _BLOCK_DEVICE: self._skip_device,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._root.close()

    def apply_layer(self, reader: OwnerTarReader) -> None:
        """Apply a layer on top of those before."""
        self._layer_entries = LayerEntries(is_lowest=self._is_lowest)
        self._is_lowest = False
        self._invalidate_paths()  # they may lead through links of the layer before
        for entry in reader:
            parent, _, name = entry.name.rpartition("/")
            if name in ("", ".", ".."):
                parent, name = split_path(entry.name)
                if not name:
                    continue  # the root itself: as in containerd, the image does not set its mode
            try:
                if name.startswith(WHITEOUT_PREFIX):
                    self._apply_whiteout(parent, name)
                else:
                    self._open_parent(parent)
                    self._write_entry(name, entry, reader)
            except OSError as error:
                raise _translate_os_error(f"the entry {entry.name!r}", error) from error

    def complete(self, working_dir: str) -> None:
        """Create what a container needs and the image may lack: the root is mounted read-only."""
        self._layer_entries = LayerEntries()
        try:
            self._set_root_owner()
            for name, mode in _MOUNT_POINTS.items():
                self._make_mount_point(name, mode)
            self._write_hosts()
            self._root.open_directory(_encode_name(working_dir), create=True)
        except OSError as error:
            raise _translate_os_error(f"the working directory {working_dir!r}", error) from error
        walk_directories(self._root.fd, _list_subdirectories, self._restore_directory_metadata)

    def _open_parent(self, parent: str) -> None:
        """Open the parent directory of an entry; create it if it is missing, or not one in a lower layer."""
        if parent == self._parent_path:
            return
        if ".." in parent.split("/"):
            raise MalformedImage(f"an entry in {parent!r} leads out of its directory")
        self._parent_path, self._shared_symlinks = None, {}
        self._parent = self._root.open_directory(_encode_name(parent), create=True)
        self._parent_path = parent
        self._parent_names = self._layer_entries.names_to_record(self._parent.inode)

    def _apply_whiteout(self, parent: str, name: str) -> None:
        target = name.removeprefix(WHITEOUT_PREFIX)
        if target in ("", ".", ".."):
            raise MalformedImage(f"the whiteout {name!r} names nothing to hide")
        self._open_parent(parent)
        if name != OPAQUE_WHITEOUT:
            is_stale = self._layer_entries.apply_whiteout(self._parent, target)
        elif self._parent.inode == self._root_inode and not self._layer_entries.is_lowest:
            raise MalformedImage(f"a layer has {OPAQUE_ROOT}")
        else:
            is_stale = self._layer_entries.apply_opaque(self._parent)
        if is_stale:
            self._invalidate_paths()

    def _is_lower(self, directory_fd: int, name: bytes) -> bool:
        return not self._layer_entries.is_own(os.fstat(directory_fd).st_ino, name)

    def _write_entry(self, name: str, entry: TarEntry, reader: OwnerTarReader) -> None:
        """Create an entry in the parent directory, replacing whatever has its name."""
        write = self._writers.get(entry.type)
        if write is None:
            raise MalformedImage(f"the entry {entry.name!r} has the unknown type {entry.type!r}")
        if len(entry.name) > _SAFE_LENGTH and len(_encode_name(entry.name)) > _PATH_MAX:
            raise MalformedImage(f"the entry {entry.name!r} has a path longer than Linux allows")
        raw_name = _encode_name(name)
        self._count_entry(entry.size + _INODE_BYTES)
        try:
            write(raw_name, entry, reader)
        except FileExistsError:
            self._remove_existing(raw_name)
            write(raw_name, entry, reader)
        if self._parent_names is not None:
            self._parent_names.add(name, 0)

    def _count_entry(self, size: int) -> None:
        self.size += size
        self._entries_left -= 1
        if self._entries_left < 0:
            raise LimitExceeded("the image has too many files")

    def _remove_existing(self, name: bytes) -> None:
        """Remove whatever has this name in the parent directory."""
        existing = stat_entry(self._parent.fd, name)
        if existing is None:
            return
        if stat.S_ISDIR(existing.st_mode):
            self._layer_entries.record_replaced(self._parent, name, existing.st_ino)
        if remove_entry(self._parent.fd, name):
            self._invalidate_paths()

    def _invalidate_paths(self) -> None:
        """Forget resolved paths: a directory or a symbolic link was removed, so they may lead elsewhere."""
        self._root.invalidate()
        self._parent_path = None

    # Writers of each entry type. They raise FileExistsError if something else has the name.

    def _write_file(self, name: bytes, entry: TarEntry, reader: OwnerTarReader) -> None:
        fd = os.open(name, _CREATE_FLAGS, _PRIVATE_MODE, dir_fd=self._parent.fd)
        try:
            if entry.size:
                _copy_data(reader, fd)
            owner = reader.read_owner()
            if self._id_offset is not None:
                os.fchown(fd, *_map_owner(owner, self._id_offset))
            os.fchmod(fd, entry.mode & _FILE_MODE_MASK)
            os.utime(fd, ns=_clamp_times(owner))
        finally:
            os.close(fd)

    def _write_directory(self, name: bytes, entry: TarEntry, reader: OwnerTarReader) -> None:
        try:
            inode = self._make_directory(self._parent.fd, name)
        except FileExistsError:
            existing = stat_entry(self._parent.fd, name)
            if existing is None or not stat.S_ISDIR(existing.st_mode):
                raise
            inode = existing.st_ino
        owner = reader.read_owner()
        self._set_owner(name, owner)
        self._directory_metadata[inode] = (entry.mode & _DIRECTORY_MODE_MASK, _clamp_times(owner)[0])

    def _write_symlink(self, name: bytes, entry: TarEntry, reader: OwnerTarReader) -> None:
        """Create a symbolic link; equal ones of a directory (busybox has hundreds) are hard links to one.

        A new inode for each takes up to thirty times as long on ext4 after many inodes were freed.
        """
        key = entry.linkname, reader.read_owner()
        shared_name, parent_fd = self._shared_symlinks.get(key), self._parent.fd
        if shared_name is not None and _link_symlink(parent_fd, shared_name, name):
            return
        os.symlink(_encode_name(entry.linkname), name, dir_fd=parent_fd)
        self._set_metadata(name, reader)
        if len(self._shared_symlinks) < _MAX_SHARED_SYMLINKS or shared_name is not None:
            self._shared_symlinks[key] = name

    def _write_hard_link(self, name: bytes, entry: TarEntry, reader: OwnerTarReader) -> None:
        """Link to a file of this layer, which gets mode and owner of the entry."""
        target_directory, _, target_base = entry.linkname.rpartition("/")
        target_name, parent_fd = _encode_name(target_base), self._parent.fd
        try:
            target_fd, target_inode = self._root.open_directory(_encode_name(target_directory))
            target_stat = os.stat(target_name, dir_fd=target_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise MalformedImage(hard_link_error(entry.name, entry.linkname)) from None
        is_own = self._layer_entries.is_own(target_inode, target_name)
        is_itself = (target_inode, target_name) == (self._parent.inode, name)
        if stat.S_ISDIR(target_stat.st_mode) or is_itself or not is_own:
            raise MalformedImage(hard_link_error(entry.name, entry.linkname))
        existing = stat_entry(parent_fd, name)
        if existing is None or existing.st_ino != target_stat.st_ino:
            os.link(target_name, name, src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
        self._set_owner(name, reader.read_owner())
        if not stat.S_ISLNK(target_stat.st_mode):
            chmod_nofollow(parent_fd, name, entry.mode & _FILE_MODE_MASK)

    def _write_fifo(self, name: bytes, entry: TarEntry, reader: OwnerTarReader) -> None:
        os.mkfifo(name, _PRIVATE_MODE, dir_fd=self._parent.fd)
        self._set_metadata(name, reader)
        chmod_nofollow(self._parent.fd, name, entry.mode & _FILE_MODE_MASK)

    def _skip_device(self, name: bytes, _entry: TarEntry, _reader: OwnerTarReader) -> None:
        """Create no device, but remove what the device would replace."""
        self._remove_existing(name)

    def _set_metadata(self, name: bytes, reader: OwnerTarReader) -> None:
        owner = reader.read_owner()
        self._set_owner(name, owner)
        os.utime(name, ns=_clamp_times(owner), dir_fd=self._parent.fd, follow_symlinks=False)

    def _set_owner(self, name: bytes, owner: EntryOwner) -> None:
        if self._id_offset is not None:
            ids = _map_owner(owner, self._id_offset)
            os.chown(name, *ids, dir_fd=self._parent.fd, follow_symlinks=False)

    def _make_directory(self, parent_fd: int, name: bytes) -> int:
        """Create a directory, of an entry or a parent of one. Return its inode number."""
        if not self._directories_left:
            raise LimitExceeded("the image has too many directories")
        self._layer_entries.check_not_hidden(parent_fd, name)
        os.mkdir(name, _PRIVATE_MODE, dir_fd=parent_fd)
        self._directories_left -= 1
        self._count_entry(4 * _INODE_BYTES)
        if self._id_offset is not None:
            os.chown(name, self._id_offset, self._id_offset, dir_fd=parent_fd, follow_symlinks=False)
        inode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_ino
        self._directory_metadata.pop(inode, None)  # of a removed directory
        self._layer_entries.add_owned_dir(inode)
        return inode

    # Completion

    def _set_root_owner(self) -> None:
        root_fd = self._root.fd
        os.fchmod(root_fd, _DIRECTORY_MODE)
        if self._id_offset is not None:
            os.fchown(root_fd, self._id_offset, self._id_offset)

    def _make_mount_point(self, name: bytes, mode: int) -> None:
        """Ensure a directory of that name in the root; a symbolic link would be followed by mount(2)."""
        root_fd = self._root.fd
        existing = stat_entry(root_fd, name)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            return
        if existing is not None:
            remove_tree(root_fd, name)
            self._invalidate_paths()
        self._directory_metadata[self._make_directory(root_fd, name)] = (mode, 0)

    def _write_hosts(self) -> None:
        """Write a default /etc/hosts if the image has none, or an empty one as BuildKit leaves it."""
        try:
            etc_fd = self._root.open_directory(b"etc", create=True).fd
        except OSError as error:
            if error.errno in _BAD_NAME_ERRORS:
                return  # /etc is not a directory
            raise
        existing = stat_entry(etc_fd, b"hosts")
        if existing is not None and (existing.st_size or not stat.S_ISREG(existing.st_mode)):
            return
        if existing is not None:
            os.unlink(b"hosts", dir_fd=etc_fd)  # not truncated: it may have hard links
        fd = os.open(b"hosts", _CREATE_FLAGS, _PRIVATE_MODE, dir_fd=etc_fd)
        try:
            os.write(fd, _DEFAULT_HOSTS)
            os.fchmod(fd, 0o644)
            if self._id_offset is not None:
                os.fchown(fd, self._id_offset, self._id_offset)
        finally:
            os.close(fd)

    def _restore_directory_metadata(self, _parent_fd: int, _name: bytes, directory_fd: int) -> None:
        mode, mtime = self._directory_metadata.get(os.fstat(directory_fd).st_ino, (_DIRECTORY_MODE, 0))
        os.fchmod(directory_fd, mode)
        os.utime(directory_fd, ns=(mtime, mtime))


def _copy_data(reader: OwnerTarReader, fd: int) -> None:
    while chunk := reader.read(_CHUNK_SIZE):
        remaining = memoryview(chunk)
        while remaining:
            try:
                remaining = remaining[os.write(fd, remaining) :]
            except OSError as error:
                if error.errno in DISK_FULL_ERRORS:
                    raise DiskFull(len(remaining) + reader.remaining) from error
                raise


def _link_symlink(directory_fd: int, old: bytes, new: bytes) -> bool:
    """Hard-link a symbolic link. Return False if the file system refuses, for example with EMLINK."""
    try:
        os.link(old, new, src_dir_fd=directory_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _clamp_times(owner: EntryOwner) -> tuple[int, int]:
    """Return access and modification time; out of Go's range it is 0, as in containerd."""
    timestamp = owner.mtime if 0 <= owner.mtime <= _MAX_MTIME else 0
    return timestamp, timestamp


def _map_owner(owner: EntryOwner, id_offset: int) -> tuple[int, int]:
    uid, gid = (number if 0 <= number < _ID_COUNT else _NOBODY for number in owner[:2])
    return id_offset + uid, id_offset + gid


def _list_subdirectories(directory_fd: int) -> list[bytes]:
    with os.scandir(directory_fd) as entries:
        return [os.fsencode(each.name) for each in entries if each.is_dir(follow_symlinks=False)]


def _encode_name(name: str) -> bytes:
    return name.encode() if name.isascii() else name.encode("utf-8", "surrogateescape")


def _translate_os_error(subject: str, error: OSError) -> Exception:
    """Translate OSError for an entry of the image to DiskFull, LimitExceeded or MalformedImage."""
    if error.errno in DISK_FULL_ERRORS:
        return DiskFull(_INODE_BYTES)
    if error.errno in _LIMIT_ERRORS:
        return LimitExceeded(f"{subject}: {error.strerror}")
    if error.errno in _BAD_NAME_ERRORS:
        return MalformedImage(f"{subject} cannot be created: {error.strerror}")
    return error
