"""Locks between processes."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["file_lock", "run_once"]


@contextlib.contextmanager
def file_lock(path: Path, *, dry_run: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a file, whose directory is created; a dry run takes no lock."""
    if dry_run:
        yield
        return
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path):
        yield


def run_once(result_path: Path, run_id: str, compute: Callable[[], Any]) -> Any:
    """Return the value of ``compute()``, called by the first process of a run only; the others wait for it.

    The value must be serialisable as JSON; it is stored in ``result_path`` with ``run_id``. If the first
    process is killed, another one computes it.
    """
    with file_lock(result_path.with_suffix(".lock")):
        with contextlib.suppress(OSError, TypeError, ValueError):  # missing, or truncated by a kill
            recorded_run_id, value = json.loads(result_path.read_bytes())
            if recorded_run_id == run_id:
                return value
        value = compute()
        # Not atomic: readers hold the lock, and a truncated file is computed again.
        result_path.write_text(json.dumps([run_id, value]), encoding="utf-8")
        return value
