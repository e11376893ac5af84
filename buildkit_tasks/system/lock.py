"""One at a time, among all processes of this user."""

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
    """Hold a lock file while something is made; a dry run makes nothing and holds none."""
    if dry_run:
        yield
        return
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path):
        yield


def run_once(result_path: Path, run_id: str, compute: Callable[[], Any]) -> Any:
    """What ``make`` gives; to all processes of one ``run`` what it gave the first of them.

    It is a value that JSON can hold. The others wait; a process that is killed over it leaves it to them.
    """
    with file_lock(result_path.with_suffix(".lock")):
        with contextlib.suppress(OSError, ValueError):  # none yet, or cut off by a kill
            recorded_run_id, value = json.loads(result_path.read_bytes())
            if recorded_run_id == run_id:
                return value
        value = compute()
        result_path.write_text(json.dumps([run_id, value]), encoding="utf-8")
        return value
