"""Wait for another thread or process instead of sleeping for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_SECONDS = 120.0  # a busy machine needs several times what an idle one does
_POLL_SECONDS = 0.01


def wait_until(condition: Callable[[], object], seconds: float = _SECONDS) -> None:
    """Wait until a condition is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(_POLL_SECONDS)


def process_state(pid: int) -> str:
    """Return the state of a process: proc_pid_stat(5), such as T if it is stopped."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return stat.rpartition(")")[2].split()[0]


def waits_for_flock(pid: int) -> bool:
    """Return whether a process waits for a flock(2) that another holds: proc_locks(5)."""
    rows = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    return any(row[1:3] == ["->", "FLOCK"] and int(row[5]) == pid for row in rows)
