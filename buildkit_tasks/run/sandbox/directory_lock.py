"""Locks on directories that may be renamed or removed while another process waits for the lock.

The lock is a flock(2) on the file ``lock`` inside the directory, so it moves with the directory when that
is renamed. The kernel releases it when the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LOCK_NAME", "DirectoryLock", "hold_file_lock"]

LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True)
class DirectoryLock:
    """A lock that is held, as the descriptor of its file."""

    fd: int

    @classmethod
    def create(cls, directory: Path) -> Self:
        """Take the exclusive lock of a directory that may have no lock file yet.

        Raises :class:`BlockingIOError` if the lock is held, and :class:`OSError` as ``open`` does.
        """
        return cls(_open_and_lock(directory / LOCK_NAME, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_CREAT))

    @classmethod
    def wait_shared(cls, directory: Path) -> Self | None:
        """Wait for the shared lock. Return None if the directory does not exist, or no longer does."""
        return cls._acquire(directory, fcntl.LOCK_SH)

    @classmethod
    def try_exclusive(cls, directory: Path) -> Self | None:
        """Take the exclusive lock. Return None if it is held or the directory does not exist."""
        return cls._acquire(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @classmethod
    def _acquire(cls, directory: Path, operation: int) -> Self | None:
        while True:
            try:
                lock = cls(_open_and_lock(directory / LOCK_NAME, operation))
            except (FileNotFoundError, NotADirectoryError, BlockingIOError):
                return None
            if lock.is_at(directory):
                return lock
            lock.release()  # the directory was renamed while we waited: look at its path again

    def is_at(self, directory: Path) -> bool:
        """Return True if this is the lock of the directory that has this path now."""
        try:
            return os.path.samestat(os.fstat(self.fd), (directory / LOCK_NAME).stat())
        except FileNotFoundError:
            return False

    def downgrade(self) -> None:
        """Make an exclusive lock shared. Not atomic: another process may get the exclusive one in between."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Unlock and close the file."""
        _unlock_and_close(self.fd)


@contextlib.contextmanager
def hold_file_lock(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file, which is created and never removed."""
    fd = _open_and_lock(path, fcntl.LOCK_EX, os.O_CREAT)
    try:
        yield
    finally:
        _unlock_and_close(fd)


def _open_and_lock(path: Path, operation: int, extra_flags: int = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | extra_flags, 0o600)
    try:
        fcntl.flock(fd, operation)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unlock_and_close(fd: int) -> None:
    # close(2) alone would leave the lock to a child that was forked meanwhile and has the descriptor, too.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
