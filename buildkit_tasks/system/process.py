"""Processes identified by pid and start time, so that a reused pid is not mistaken for them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.errors import EngineError

__all__ = ["Process", "find_processes_by_argument"]

_KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A pid and the start time of its process: field 22 of /proc/PID/stat, ticks since boot (proc(5))."""

    pid: int
    start_time: int

    @classmethod
    def from_pid(cls, pid: int) -> Process:
        """Return the process with this pid. Raises :class:`ProcessLookupError` if there is none."""
        start_time = _read_start_time(pid)
        if start_time is None:
            raise ProcessLookupError(pid)
        return cls(pid=pid, start_time=start_time)

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Parse the result of ``str()``; return None for any other text."""
        pid, _, start_time = text.partition("-")
        return (
            cls(pid=int(pid), start_time=int(start_time))
            if pid.isdecimal() and start_time.isdecimal()
            else None
        )

    def __str__(self) -> str:
        return f"{self.pid}-{self.start_time}"

    @property
    def is_alive(self) -> bool:
        """Whether the process still exists and is not a zombie."""
        return _read_start_time(self.pid) == self.start_time

    @property
    def executable(self) -> Path:
        """The program file; an empty path if the process is gone or belongs to another user."""
        try:
            return Path(f"/proc/{self.pid}/exe").readlink()
        except OSError:
            return Path()

    def terminate(self, grace_seconds: float) -> None:
        """Send SIGTERM and, after ``grace_seconds``, SIGKILL, unless the pid has been reused.

        Raises :class:`EngineError` if the process survives both.
        """
        for signal_number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _KILL_SECONDS)):
            deadline = time.monotonic() + seconds
            with contextlib.suppress(ProcessLookupError):
                if self.is_alive:
                    os.kill(self.pid, signal_number)
            while self.is_alive and time.monotonic() < deadline:
                time.sleep(0.02)
            if not self.is_alive:
                return
        raise EngineError(f"process {self.pid} could not be killed")


def find_processes_by_argument(path: Path) -> list[Process]:
    """Return all processes with ``path`` in their command line."""
    processes = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in cmdline.read_bytes():
                processes.append(Process.from_pid(int(cmdline.parent.name)))
    return processes


def _read_start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name (field 2, in parentheses) may contain spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])
