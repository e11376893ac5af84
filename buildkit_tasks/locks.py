"""One at a time, among all processes of this user."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["only_one"]


@contextlib.contextmanager
def only_one(lock: Path, *, dry_run: bool = False) -> Iterator[None]:
    """Hold a lock file while something is made; a dry run makes nothing and holds none."""
    if dry_run:
        yield
        return
    import filelock  # noqa: PLC0415 - only a first run needs it

    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        yield
