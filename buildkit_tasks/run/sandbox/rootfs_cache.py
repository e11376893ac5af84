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

__all__ = ["Root", "Roots"]

_LOCK, _NOTE, _FILES = "lock", "root.json", "root"  # what a kept root's folder holds
_FORM = 1  # of the note, and of what unpacking makes: one of another release is made anew
_ALONE = ".lock"  # held while folders get and lose their names
_STAGING, _GONE = _HALF = ".staging-", ".gone-"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_KEPT = re.compile(r"sha(?:256|512)-[0-9a-f]+-(?P<boot>[0-9a-f]+)-(?P<user>[0-9]+)(?:-[0-9]+)?", re.ASCII)
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES, _PAUSE = 50, 0.02  # seconds
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A root file system on disk, and its image's configuration."""

    path: Path
    config: ImageConfig


class Roots:
    """The roots in one folder, of about ``cap`` bytes together. Threads may share it.

    ``shift`` is that of :func:`~buildkit_tasks.run.sandbox.unpack.unpack`; what belongs to
    somebody else or is mapped otherwise is another root.
    """

    def __init__(self, folder: Path, cap: int, shift: int | None) -> None:
        self._folder = folder
        self._cap = cap
        self._shift = shift
        self._boot = ""
        self._over = False  # more is kept than may be, since it was in use
        self._preparing = threading.Lock()

    @contextlib.contextmanager
    def root(self, source: Source, entry: Descriptor) -> Iterator[Root]:
        """The root of that manifest, unpacked unless it is there; nobody removes it meanwhile.

        Raises what :func:`~buildkit_tasks.run.sandbox.unpack.unpack` does.
        """
        with _told(self._folder):
            self._prepare()
            lock, root = self._get(source, entry)
        try:
            yield root
        finally:
            _let_go(lock)
            if self._over:
                with _told(self._folder):
                    self._evict()

    def _prepare(self) -> None:
        """Once: make the folder, remove what killed processes and earlier boots left in it."""
        with self._preparing:
            if self._boot:
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            boot = _BOOT.read_text(encoding="ascii").partition("-")[0]
            names = self._names()
            if any(name.startswith(_HALF) for name in names):
                self._sweep()
            for name in names:
                kept = _KEPT.fullmatch(name)
                if kept is not None and kept["boot"] != boot and int(kept["user"]) == os.geteuid():
                    self._discard(self._folder / name)
            self._boot = boot

    def _get(self, source: Source, entry: Descriptor) -> tuple[int, Root]:
        digest, mapping = entry.digest, "" if self._shift is None else f"-{self._shift}"
        key = f"{digest.algorithm}-{digest.hex}-{self._boot}-{os.geteuid()}{mapping}"
        place = self._folder / key
        while True:
            lock = _locked(place, fcntl.LOCK_SH)
            if lock is None:
                lock = self._make(place, source, entry)
            if lock is None:
                continue
            root = _read(place)
            if root is not None:
                os.utime(lock)
                return lock, root
            _let_go(lock)
            self._drop(place)

    def _make(self, place: Path, source: Source, entry: Descriptor) -> int | None:
        """Unpack it, or wait for who does; gives the lock on it, or None if it has to be looked for again."""
        staging = self._folder / f"{_STAGING}{place.name}"
        lock = self._begin(place, staging)
        if lock is None:
            self._wait(staging)
            return None
        try:
            _fill(staging, source, entry, self._shift)
            staging.rename(place)
            # It is nobody's for a moment, and found by its name, or not, after that.
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._evict()
        except BaseException as error:
            _remove(staging)
            _let_go(lock)
            if isinstance(error, LimitExceeded) and error.hint:
                error.hint = f"df -h {self._folder}"  # the folder that it names is gone
            raise
        if _is_at(lock, place):
            return lock
        _let_go(lock)
        return None

    def _begin(self, place: Path, staging: Path) -> int | None:
        """Make the folder to unpack into, locked; None if somebody else is at it or has done it."""
        with self._alone():
            try:
                staging.mkdir(mode=0o700)
            except FileExistsError:
                return None
            try:
                # Looked for only now: while this folder is there nobody else puts a root into its place.
                if (place / _LOCK).exists():
                    staging.rmdir()
                    return None
                if place.exists():  # none that was made here
                    _remove(self._renamed(place))
                return _lock_new(staging)
            except OSError:
                staging.rmdir()
                raise

    def _wait(self, staging: Path) -> None:
        lock = _locked(staging, fcntl.LOCK_SH)
        if lock is not None:
            _let_go(lock)
        if staging.exists():
            self._sweep()

    def _sweep(self) -> None:
        """Remove what is half made or half removed, and nobody's: its lock can be had."""
        with self._alone():
            taken = [self._taken(self._folder / name) for name in self._names() if name.startswith(_HALF)]
        for lock, gone in filter(None, taken):
            _remove(gone)
            _let_go(lock)

    def _taken(self, place: Path) -> tuple[int, Path] | None:
        """Lock a folder and take it out of the way; None if it is in use, gone, or somebody else's."""
        try:
            lock = _lock_new(place)
        except OSError:
            return None
        try:
            return lock, self._renamed(place)
        except OSError:
            _let_go(lock)
            return None

    def _evict(self) -> None:
        """Remove the roots that were not used for the longest time, as many as are past the cap."""
        kept: list[tuple[int, int, Path]] = []
        for name in self._names():
            match, place = _KEPT.fullmatch(name), self._folder / name
            if match is not None and int(match["user"]) == os.geteuid():
                with contextlib.suppress(FileNotFoundError):
                    kept.append(((place / _LOCK).stat().st_mtime_ns, _size(place), place))
        total = sum(size for _, size, _ in kept)
        for _, size, place in sorted(kept):
            if total <= self._cap:
                break
            if self._discard(place):
                total -= size
        self._over = total > self._cap

    def _discard(self, place: Path) -> bool:
        """Remove a root; not if it is in use."""
        lock = _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            _remove(self._renamed(place))
        finally:
            _let_go(lock)
        return True

    def _names(self) -> list[str]:
        return [each.name for each in self._folder.iterdir()]

    def _drop(self, place: Path) -> None:
        """Remove a damaged root, which others may be about to find out too."""
        for _ in range(_TRIES):
            if self._discard(place) or not (place / _LOCK).exists():
                return
            time.sleep(_PAUSE)
        raise EmulatorError(f"{place} is damaged, and in use", hint=f"rm -rf {place}")

    def _renamed(self, place: Path) -> Path:
        """Take a folder out of the way, so that its name is free while it is removed."""
        return place.rename(self._folder / f"{_GONE}{secrets.token_hex(8)}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self._folder / _ALONE, _OPEN | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            _let_go(lock)


# Locks: on a file in the folder that is meant, with which it is renamed.


def _locked(place: Path, how: int) -> int | None:
    """Lock a folder; None if it is not there, or with LOCK_NB if others have it."""
    while True:
        try:
            lock = os.open(place / _LOCK, _OPEN)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        if _is_at(lock, place):
            return lock
        _let_go(lock)  # it was removed while we waited


def _lock_new(place: Path) -> int:
    """Lock a folder that may have no lock yet. Raises :class:`BlockingIOError` if others have it."""
    lock = os.open(place / _LOCK, _OPEN | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _is_at(lock: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), (place / _LOCK).stat())
    except FileNotFoundError:
        return False


def _let_go(lock: int) -> None:
    # By name, since a child that was forked meanwhile has the same lock, and may live on.
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


# What stands in a root's folder.


def _fill(staging: Path, source: Source, entry: Descriptor, shift: int | None) -> None:
    import dataclasses
    import json

    from buildkit_tasks.run.sandbox.unpack import unpack_sized

    done = unpack_sized(source, entry, staging / _FILES, shift=shift)
    config = {
        field.name: getattr(done.config, field.name)
        for field in dataclasses.fields(done.config)
        if field.name != "diff_ids"
    }
    diff_ids = [str(digest) for digest in done.config.diff_ids]
    note = {"form": _FORM, "size": done.size, "config": config, "diff_ids": diff_ids}
    (staging / _NOTE).write_text(json.dumps(note), encoding="utf-8")


def _note(place: Path) -> dict[str, Any]:
    """What is noted of a root; nothing if that cannot be read."""
    import json

    try:
        note = json.loads((place / _NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _size(place: Path) -> int:
    size = _note(place).get("size")
    return size if isinstance(size, int) else 0


def _read(place: Path) -> Root | None:
    """The root in that folder; None if what is noted is damaged or of another release."""
    from buildkit_tasks.oci.model import Digest, ImageConfig

    note = _note(place)
    if note.get("form") != _FORM:
        return None
    try:
        words: dict[str, Any] = {
            name: tuple(said) if isinstance(said, list) else said for name, said in note["config"].items()
        }
        config = ImageConfig(**words, diff_ids=tuple(Digest(text) for text in note["diff_ids"]))
    except (KeyError, TypeError, AttributeError, MalformedImage):
        return None
    return Root(path=place / _FILES, config=config)


def _remove(place: Path) -> None:
    """Remove a folder, its lock last; what cannot be removed now is left to the next run."""
    from buildkit_tasks.run.sandbox.openat2 import READ, remove

    with contextlib.suppress(OSError):
        folder = os.open(place, READ)
        try:
            for each in sorted(place.iterdir(), key=lambda path: path.name == _LOCK):
                remove(folder, os.fsencode(each.name))
        finally:
            os.close(folder)
        place.rmdir()


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What it means that a folder of ours cannot be used."""
    try:
        yield
    except OSError as error:
        cause = f"{folder} cannot be used to unpack images: {error.strerror or error}"
        if error.errno in _FULL:
            raise LimitExceeded(cause, hint=f"df -h {folder}") from error
        raise EmulatorError(cause, hint=f"ls -ld {folder}") from error
