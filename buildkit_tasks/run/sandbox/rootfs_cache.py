"""Cache of unpacked root file systems, one entry for each manifest digest.

Processes share the cache directory without a daemon. An entry is a directory; its name says its state::

    .lock               names lock: held to create a staging directory and to claim abandoned ones
    .staging-ENTRY/     being unpacked
    ENTRY/              ready; ENTRY is ALGORITHM-HEX-BOOT-UID or ALGORITHM-HEX-BOOT-UID-OFFSET
        lock            the entry's lock (directory_lock.py), renamed along with the directory
        root.json       format version, size, image configuration
        root/           the root file system
    .gone-RANDOM/       being removed

=========  ============  =================================  ==============================================
state      directory     lock                               what a process does that needs the entry
=========  ============  =================================  ==============================================
absent     none          none                               create the staging directory and unpack
unpacking  .staging-E    exclusive, by its unpacker         wait for the lock, then look again
ready      E             none                               take the shared lock and use the entry
in use     E             shared, by each of its users       the same; eviction skips the entry
damaged    E             none or shared                     take the exclusive lock, remove, look again
removing   .gone-R       exclusive, by its remover          create the staging directory and unpack
abandoned  .staging-E,   none: the process was killed       take the exclusive lock, rename to .gone-R and
           .gone-R                                          delete; then as absent
=========  ============  =================================  ==============================================

An entry becomes ready by one rename(2), and ceases to be ready by one, each by the process that holds its
exclusive lock, so a half unpacked or half removed entry never looks ready. An entry is damaged if its
root.json cannot be read or has another format version. Unused entries are evicted, the least recently used
first; the time of use is the mtime of the lock file.

BOOT is the start of the kernel's boot id. Files are not synced to disk, so after a power cut an entry may
be incomplete: entries of another boot are removed, as are those that another machine has made. UID and
OFFSET keep users and id mappings apart.

Example: processes A and B need an entry that is absent. A creates ``.staging-E`` with its lock. B's mkdir
fails, so B waits for the shared lock. A unpacks, renames ``.staging-E`` to ``E`` and makes its lock shared.
B gets the lock, sees that it is no longer that of ``.staging-E``, and takes the shared lock of ``E``. If A
is killed instead, B gets the lock of ``.staging-E``, deletes the directory and unpacks the image itself.

To find a ready entry takes a fraction of a millisecond; the modules that unpack are imported only to unpack.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.run.sandbox.directory_lock import LOCK_NAME, DirectoryLock, hold_file_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import Descriptor, ImageConfig
    from buildkit_tasks.oci.source import Source

__all__ = ["CachedRootfs", "RootfsCache"]

_METADATA, _ROOTFS_NAME = "root.json", "root"
_FORMAT_VERSION = 1  # of root.json and of what unpacking makes
_NAMES_LOCK = ".lock"
_STAGING_PREFIX, _REMOVED_PREFIX = _INCOMPLETE_PREFIXES = ".staging-", ".gone-"
_ENTRY_NAME = re.compile(
    r"sha(?:256|512)-[0-9a-f]+-(?P<boot>[0-9a-f]+)-(?P<user>[0-9]+)(?:-[0-9]+)?", re.ASCII
)
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_MAX_TRIES, _RETRY_SECONDS = 50, 0.02
_DISK_FULL_ERRORS = frozenset([errno.ENOSPC, errno.EDQUOT])


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRootfs:
    """A root file system on disk and the configuration of its image."""

    path: Path
    config: ImageConfig


class RootfsCache:
    """The cache in ``directory``, of about ``max_bytes`` together. Threads may share it.

    ``id_offset`` is that of :func:`~buildkit_tasks.run.sandbox.unpack.unpack`.
    """

    def __init__(self, directory: Path, max_bytes: int, id_offset: int | None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._id_offset = id_offset
        self._boot_id = ""
        self._is_over_limit = False  # after the last eviction: entries in use were skipped
        self._prepare_lock = threading.Lock()

    @contextlib.contextmanager
    def acquire(self, source: Source, descriptor: Descriptor) -> Iterator[CachedRootfs]:
        """Yield the root file system of a manifest, unpacked if it is not cached; hold its shared lock.

        Raises what :func:`~buildkit_tasks.run.sandbox.unpack.unpack` does.
        """
        with _translate_os_errors(self._directory):
            self._prepare()
            lock, rootfs = self._lock_entry(source, descriptor)
        try:
            yield rootfs
        finally:
            lock.release()
            if self._is_over_limit:
                with _translate_os_errors(self._directory):
                    self._evict_oldest()

    # Looking an entry up

    def _lock_entry(self, source: Source, descriptor: Descriptor) -> tuple[DirectoryLock, CachedRootfs]:
        """Bring an entry from any state to "in use"; return its shared lock and its content."""
        path = self._entry_path(descriptor)
        while True:
            lock = DirectoryLock.wait_shared(path) or self._unpack_entry(path, source, descriptor)
            if lock is None:
                continue
            rootfs = _read_rootfs(path)
            if rootfs is not None:
                os.utime(lock.fd)
                return lock, rootfs
            lock.release()
            self._remove_damaged(path)

    def _entry_path(self, descriptor: Descriptor) -> Path:
        digest, offset = descriptor.digest, "" if self._id_offset is None else f"-{self._id_offset}"
        return self._directory / f"{digest.algorithm}-{digest.hex}-{self._boot_id}-{os.geteuid()}{offset}"

    # Adding an entry

    def _unpack_entry(self, path: Path, source: Source, descriptor: Descriptor) -> DirectoryLock | None:
        """Unpack an entry, or wait for the process that does.

        Return its shared lock, or None if the state of the entry has changed and must be examined again.
        """
        staging = self._directory / f"{_STAGING_PREFIX}{path.name}"
        lock = self._create_staging(path, staging)
        if lock is None:
            self._wait_for_staging(staging)
            return None
        try:
            self._fill_and_rename(staging, path, source, descriptor)
            lock.downgrade()
            self._evict_oldest()
        except BaseException:
            lock.release()
            raise
        if lock.is_at(path):  # not evicted while the lock was downgraded
            return lock
        lock.release()
        return None

    def _create_staging(self, path: Path, staging: Path) -> DirectoryLock | None:
        """Create and lock the staging directory. Return None if the entry is unpacking or ready."""
        # Without the names lock another process could see the directory before it is locked: abandoned.
        with hold_file_lock(self._directory / _NAMES_LOCK):
            try:
                staging.mkdir(mode=0o700)
            except FileExistsError:
                return None
            try:
                # Checked after mkdir: from then on no other process can rename a staging directory to path.
                if (path / LOCK_NAME).exists():
                    staging.rmdir()
                    return None
                if path.exists():  # without a lock file it is not an entry
                    _remove_directory(self._rename_to_removed(path))
                return DirectoryLock.create(staging)
            except OSError:
                staging.rmdir()
                raise

    def _fill_and_rename(self, staging: Path, path: Path, source: Source, descriptor: Descriptor) -> None:
        try:
            _unpack_into(staging, source, descriptor, self._id_offset)
            staging.rename(path)
        except BaseException as error:
            _remove_directory(staging)
            if isinstance(error, LimitExceeded) and error.hint:
                error.hint = f"df -h {self._directory}"  # it named the staging directory, which is removed
            raise

    def _wait_for_staging(self, staging: Path) -> None:
        """Wait until a staging directory is renamed or its process has died; then remove it."""
        lock = DirectoryLock.wait_shared(staging)
        if lock is not None:
            lock.release()
        if staging.exists():
            self._remove_abandoned()

    # Removing entries

    def _prepare(self) -> None:
        """Create the cache directory; remove what killed processes and earlier boots have left. Once only."""
        with self._prepare_lock:
            if self._boot_id:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            boot_id = _BOOT_ID_FILE.read_text(encoding="ascii").partition("-")[0]
            if any(name.startswith(_INCOMPLETE_PREFIXES) for name in self._list_names()):
                self._remove_abandoned()
            for path, entry_boot_id in self._list_own_entries():
                if entry_boot_id != boot_id:
                    self._remove_if_unused(path)
            self._boot_id = boot_id

    def _remove_abandoned(self) -> None:
        """Remove the staging and removed directories whose lock is not held."""
        with hold_file_lock(self._directory / _NAMES_LOCK):
            claimed = [
                self._claim_directory(self._directory / name)
                for name in self._list_names()
                if name.startswith(_INCOMPLETE_PREFIXES)
            ]
        for lock, path in filter(None, claimed):
            _remove_directory(path)
            lock.release()

    def _claim_directory(self, path: Path) -> tuple[DirectoryLock, Path] | None:
        """Lock a directory and rename it to a removed one. Return None if it is locked, gone or not ours."""
        try:
            lock = DirectoryLock.create(path)
        except OSError:
            return None
        try:
            return lock, self._rename_to_removed(path)
        except OSError:
            lock.release()
            return None

    def _evict_oldest(self) -> None:
        """Remove unused entries, the least recently used first, until ``max_bytes`` are left."""
        entries: list[tuple[int, int, Path]] = []
        for path, _ in self._list_own_entries():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                entries.append(((path / LOCK_NAME).stat().st_mtime_ns, _read_size(path), path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                break
            if self._remove_if_unused(path):
                total -= size
        self._is_over_limit = total > self._max_bytes

    def _remove_damaged(self, path: Path) -> None:
        """Remove a damaged entry. Others that find out the same hold its shared lock for a moment: retry."""
        for _ in range(_MAX_TRIES):
            if self._remove_if_unused(path) or not (path / LOCK_NAME).exists():
                return
            time.sleep(_RETRY_SECONDS)
        raise EmulatorError(f"{path} is damaged and in use", hint=f"rm -rf {path}")

    def _remove_if_unused(self, path: Path) -> bool:
        """Remove an entry. Return False if it is in use or absent."""
        lock = DirectoryLock.try_exclusive(path)
        if lock is None:
            return False
        try:
            _remove_directory(self._rename_to_removed(path))
        finally:
            lock.release()
        return True

    def _rename_to_removed(self, path: Path) -> Path:
        """Free the name of a directory before the slow part of its removal."""
        return path.rename(self._directory / f"{_REMOVED_PREFIX}{secrets.token_hex(8)}")

    def _list_own_entries(self) -> Iterator[tuple[Path, str]]:
        """Yield the path and the boot id of each entry of this user."""
        for name in self._list_names():
            match = _ENTRY_NAME.fullmatch(name)
            if match is not None and int(match["user"]) == os.geteuid():
                yield self._directory / name, match["boot"]

    def _list_names(self) -> list[str]:
        return [each.name for each in self._directory.iterdir()]


# The content of an entry's directory


def _unpack_into(staging: Path, source: Source, descriptor: Descriptor, id_offset: int | None) -> None:
    import dataclasses
    import json

    from buildkit_tasks.run.sandbox.unpack import unpack

    unpacked = unpack(source, descriptor, staging / _ROOTFS_NAME, id_offset=id_offset)
    config = {
        field.name: getattr(unpacked.config, field.name)
        for field in dataclasses.fields(unpacked.config)
        if field.name != "diff_ids"
    }
    diff_ids = [str(digest) for digest in unpacked.config.diff_ids]
    metadata = {"form": _FORMAT_VERSION, "size": unpacked.size, "config": config, "diff_ids": diff_ids}
    (staging / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")


def _read_rootfs(directory: Path) -> CachedRootfs | None:
    """Read an entry. Return None if it is damaged."""
    from buildkit_tasks.oci.model import Digest, ImageConfig

    metadata = _read_metadata(directory)
    if metadata.get("form") != _FORMAT_VERSION:
        return None
    try:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in metadata["config"].items()
        }
        config = ImageConfig(**fields, diff_ids=tuple(Digest(text) for text in metadata["diff_ids"]))
    except (KeyError, TypeError, AttributeError, MalformedImage):
        return None
    return CachedRootfs(path=directory / _ROOTFS_NAME, config=config)


def _read_size(directory: Path) -> int:
    size = _read_metadata(directory).get("size")
    return size if isinstance(size, int) else 0


def _read_metadata(directory: Path) -> dict[str, Any]:
    """Return what root.json holds; nothing if it cannot be read."""
    import json

    try:
        metadata = json.loads((directory / _METADATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _remove_directory(directory: Path) -> None:
    """Remove a directory, its lock file last; what cannot be removed is left to the next process."""
    from buildkit_tasks.run.sandbox.openat2 import DIRECTORY_FLAGS, remove_tree

    with contextlib.suppress(OSError):
        directory_fd = os.open(directory, DIRECTORY_FLAGS)
        try:
            for each in sorted(directory.iterdir(), key=lambda path: path.name == LOCK_NAME):
                remove_tree(directory_fd, os.fsencode(each.name))
        finally:
            os.close(directory_fd)
        directory.rmdir()


@contextlib.contextmanager
def _translate_os_errors(directory: Path) -> Iterator[None]:
    """Translate OSError on the cache directory to LimitExceeded (disk full) or EmulatorError."""
    try:
        yield
    except OSError as error:
        message = f"{directory} cannot be used to unpack images: {error.strerror or error}"
        if error.errno in _DISK_FULL_ERRORS:
            raise LimitExceeded(message, hint=f"df -h {directory}") from error
        raise EmulatorError(message, hint=f"ls -ld {directory}") from error
