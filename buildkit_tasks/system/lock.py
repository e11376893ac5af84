"""One at a time, among all processes of this user."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["once", "only_one"]


@contextlib.contextmanager
def only_one(lock: Path, *, dry_run: bool = False) -> Iterator[None]:
    """Hold a lock file while something is made; a dry run makes nothing and holds none."""
    if dry_run:
        yield
        return
    import filelock

    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        yield


def once(record: Path, run: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; to all processes of one ``run`` what it gave the first of them.

    It is a value that JSON can hold. The others wait; a process that is killed over it leaves it to them.
    """
    with only_one(record.with_suffix(".lock")):
        with contextlib.suppress(OSError, ValueError):  # none yet, or cut off by a kill
            first, value = json.loads(record.read_bytes())
            if first == run:
                return value
        value = make()
        record.write_text(json.dumps([run, value]), encoding="utf-8")
        return value
