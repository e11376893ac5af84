"""Unpacked root file systems, kept by their manifest's digest for the next run.

A root is made beside its place and renamed when it is whole. Whoever uses one holds a shared lock on
it, whoever makes or removes one an exclusive lock: the kernel lets go of both when a process dies, so
that what a killed one left behind is known by that nobody holds its lock. A root counts for one boot:
what a machine that went down may have half written, or what came here from another one, does not.

Nothing heavy is imported until a root has to be unpacked: finding one costs a fraction of a millisecond.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import Descriptor, ImageConfig
    from buildkit_tasks.oci.source import Source

__all__ = ["CachedRootfs", "RootfsCache"]

_LOCK_NAME, _METADATA, _ROOTFS_NAME = "lock", "root.json", "root"  # what a kept root's folder holds
_FORMAT_VERSION = 1  # of the note, and of what unpacking makes: one of another release is made anew
_NAMES_LOCK = ".lock"  # held while folders get and lose their names
_STAGING_PREFIX, _REMOVED_PREFIX = _INCOMPLETE_PREFIXES = ".staging-", ".gone-"
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_ENTRY_NAME = re.compile(
    r"sha(?:256|512)-[0-9a-f]+-(?P<boot>[0-9a-f]+)-(?P<user>[0-9]+)(?:-[0-9]+)?", re.ASCII
)
_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TRIES, _RETRY_SECONDS = 50, 0.02  # seconds
_DISK_FULL_ERRORS = frozenset([errno.ENOSPC, errno.EDQUOT])


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRootfs:
    """A root file system on disk, and its image's configuration."""

    path: Path
    config: ImageConfig


class RootfsCache:
    """The roots in one folder, of about ``cap`` bytes together. Threads may share it.

    ``shift`` is that of :func:`~buildkit_tasks.run.sandbox.unpack.unpack`; what belongs to
    somebody else or is mapped otherwise is another root.
    """

    def __init__(self, directory: Path, max_bytes: int, id_offset: int | None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._id_offset = id_offset
        self._boot_id = ""
        self._is_over_limit = False  # more is kept than may be, since it was in use
        self._prepare_lock = threading.Lock()

    @contextlib.contextmanager
    def acquire(self, source: Source, descriptor: Descriptor) -> Iterator[CachedRootfs]:
        """The root of that manifest, unpacked unless it is there; nobody removes it meanwhile.

        Raises what :func:`~buildkit_tasks.run.sandbox.unpack.unpack` does.
        """
        with _translate_os_errors(self._directory):
            self._prepare()
            lock, rootfs = self._lock_rootfs(source, descriptor)
        try:
            yield rootfs
        finally:
            _release(lock)
            if self._is_over_limit:
                with _translate_os_errors(self._directory):
                    self._evict_oldest()

    def _prepare(self) -> None:
        """Once: make the folder, remove what killed processes and earlier boots left in it."""
        with self._prepare_lock:
            if self._boot_id:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            boot_id = _BOOT_ID_FILE.read_text(encoding="ascii").partition("-")[0]
            names = self._list_names()
            if any(name.startswith(_INCOMPLETE_PREFIXES) for name in names):
                self._remove_incomplete()
            for name in names:
                match = _ENTRY_NAME.fullmatch(name)
                if match is not None and match["boot"] != boot_id and int(match["user"]) == os.geteuid():
                    self._remove_if_unused(self._directory / name)
            self._boot_id = boot_id

    def _lock_rootfs(self, source: Source, descriptor: Descriptor) -> tuple[int, CachedRootfs]:
        digest, offset_suffix = descriptor.digest, "" if self._id_offset is None else f"-{self._id_offset}"
        key = f"{digest.algorithm}-{digest.hex}-{self._boot_id}-{os.geteuid()}{offset_suffix}"
        path = self._directory / key
        while True:
            lock = _acquire(path, fcntl.LOCK_SH)
            if lock is None:
                lock = self._unpack_rootfs(path, source, descriptor)
            if lock is None:
                continue
            rootfs = _read_rootfs(path)
            if rootfs is not None:
                os.utime(lock)
                return lock, rootfs
            _release(lock)
            self._remove_damaged(path)

    def _unpack_rootfs(self, path: Path, source: Source, descriptor: Descriptor) -> int | None:
        """Unpack it, or wait for who does; gives the lock on it, or None if it has to be looked for again."""
        staging = self._directory / f"{_STAGING_PREFIX}{path.name}"
        lock = self._create_staging(path, staging)
        if lock is None:
            self._wait_for_staging(staging)
            return None
        try:
            _fill_staging(staging, source, descriptor, self._id_offset)
            staging.rename(path)
            # It is nobody's for a moment, and found by its name, or not, after that.
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._evict_oldest()
        except BaseException as error:
            _remove_directory(staging)
            _release(lock)
            if isinstance(error, LimitExceeded) and error.hint:
                error.hint = f"df -h {self._directory}"  # the folder that it names is gone
            raise
        if _lock_is_current(lock, path):
            return lock
        _release(lock)
        return None

    def _create_staging(self, path: Path, staging: Path) -> int | None:
        """Make the folder to unpack into, locked; None if somebody else is at it or has done it."""
        with self._hold_names_lock():
            try:
                staging.mkdir(mode=0o700)
            except FileExistsError:
                return None
            try:
                # Looked for only now: while this folder is there nobody else puts a root into its place.
                if (path / _LOCK_NAME).exists():
                    staging.rmdir()
                    return None
                if path.exists():  # none that was made here
                    _remove_directory(self._move_away(path))
                return _create_lock(staging)
            except OSError:
                staging.rmdir()
                raise

    def _wait_for_staging(self, staging: Path) -> None:
        lock = _acquire(staging, fcntl.LOCK_SH)
        if lock is not None:
            _release(lock)
        if staging.exists():
            self._remove_incomplete()

    def _remove_incomplete(self) -> None:
        """Remove what is half made or half removed, and nobody's: its lock can be had."""
        with self._hold_names_lock():
            claimed = [
                self._claim_directory(self._directory / name)
                for name in self._list_names()
                if name.startswith(_INCOMPLETE_PREFIXES)
            ]
        for lock, path in filter(None, claimed):
            _remove_directory(path)
            _release(lock)

    def _claim_directory(self, path: Path) -> tuple[int, Path] | None:
        """Lock a folder and take it out of the way; None if it is in use, gone, or somebody else's."""
        try:
            lock = _create_lock(path)
        except OSError:
            return None
        try:
            return lock, self._move_away(path)
        except OSError:
            _release(lock)
            return None

    def _evict_oldest(self) -> None:
        """Remove the roots that were not used for the longest time, as many as are past the cap."""
        cached: list[tuple[int, int, Path]] = []
        for name in self._list_names():
            match, path = _ENTRY_NAME.fullmatch(name), self._directory / name
            if match is not None and int(match["user"]) == os.geteuid():
                with contextlib.suppress(FileNotFoundError):
                    cached.append(((path / _LOCK_NAME).stat().st_mtime_ns, _read_size(path), path))
        total = sum(size for _, size, _ in cached)
        for _, size, path in sorted(cached):
            if total <= self._max_bytes:
                break
            if self._remove_if_unused(path):
                total -= size
        self._is_over_limit = total > self._max_bytes

    def _remove_if_unused(self, path: Path) -> bool:
        """Remove a root; not if it is in use."""
        lock = _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            _remove_directory(self._move_away(path))
        finally:
            _release(lock)
        return True

    def _list_names(self) -> list[str]:
        return [each.name for each in self._directory.iterdir()]

    def _remove_damaged(self, path: Path) -> None:
        """Remove a damaged root, which others may be about to find out too."""
        for _ in range(_MAX_TRIES):
            if self._remove_if_unused(path) or not (path / _LOCK_NAME).exists():
                return
            time.sleep(_RETRY_SECONDS)
        raise EmulatorError(f"{path} is damaged, and in use", hint=f"rm -rf {path}")

    def _move_away(self, path: Path) -> Path:
        """Take a folder out of the way, so that its name is free while it is removed."""
        return path.rename(self._directory / f"{_REMOVED_PREFIX}{secrets.token_hex(8)}")

    @contextlib.contextmanager
    def _hold_names_lock(self) -> Iterator[None]:
        lock = os.open(self._directory / _NAMES_LOCK, _LOCK_FLAGS | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            _release(lock)


# Locks: on a file in the folder that is meant, with which it is renamed.


def _acquire(directory: Path, operation: int) -> int | None:
    """Lock a folder; None if it is not there, or with LOCK_NB if others have it."""
    while True:
        try:
            lock = os.open(directory / _LOCK_NAME, _LOCK_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(lock, operation)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        if _lock_is_current(lock, directory):
            return lock
        _release(lock)  # it was removed while we waited


def _create_lock(directory: Path) -> int:
    """Lock a folder that may have no lock yet. Raises :class:`BlockingIOError` if others have it."""
    lock = os.open(directory / _LOCK_NAME, _LOCK_FLAGS | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _lock_is_current(lock: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), (directory / _LOCK_NAME).stat())
    except FileNotFoundError:
        return False


def _release(lock: int) -> None:
    # By name, since a child that was forked meanwhile has the same lock, and may live on.
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


# What stands in a root's folder.


def _fill_staging(staging: Path, source: Source, descriptor: Descriptor, id_offset: int | None) -> None:
    import dataclasses
    import json

    from buildkit_tasks.run.sandbox.unpack import unpack_with_size

    unpacked = unpack_with_size(source, descriptor, staging / _ROOTFS_NAME, id_offset=id_offset)
    config = {
        field.name: getattr(unpacked.config, field.name)
        for field in dataclasses.fields(unpacked.config)
        if field.name != "diff_ids"
    }
    diff_ids = [str(digest) for digest in unpacked.config.diff_ids]
    metadata = {"form": _FORMAT_VERSION, "size": unpacked.size, "config": config, "diff_ids": diff_ids}
    (staging / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")


def _read_metadata(directory: Path) -> dict[str, Any]:
    """What is noted of a root; nothing if that cannot be read."""
    import json

    try:
        metadata = json.loads((directory / _METADATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _read_size(directory: Path) -> int:
    size = _read_metadata(directory).get("size")
    return size if isinstance(size, int) else 0


def _read_rootfs(directory: Path) -> CachedRootfs | None:
    """The root in that folder; None if what is noted is damaged or of another release."""
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


def _remove_directory(directory: Path) -> None:
    """Remove a folder, its lock last; what cannot be removed now is left to the next run."""
    from buildkit_tasks.run.sandbox.openat2 import DIRECTORY_FLAGS, remove_tree

    with contextlib.suppress(OSError):
        directory_fd = os.open(directory, DIRECTORY_FLAGS)
        try:
            for each in sorted(directory.iterdir(), key=lambda path: path.name == _LOCK_NAME):
                remove_tree(directory_fd, os.fsencode(each.name))
        finally:
            os.close(directory_fd)
        directory.rmdir()


@contextlib.contextmanager
def _translate_os_errors(directory: Path) -> Iterator[None]:
    """What it means that a folder of ours cannot be used."""
    try:
        yield
    except OSError as error:
        message = f"{directory} cannot be used to unpack images: {error.strerror or error}"
        if error.errno in _DISK_FULL_ERRORS:
            raise LimitExceeded(message, hint=f"df -h {directory}") from error
        raise EmulatorError(message, hint=f"ls -ld {directory}") from error
