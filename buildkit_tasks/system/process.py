"""Processes that cannot be mistaken for later ones with the same pid."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.errors import EngineError

__all__ = ["Process", "processes_naming"]

_KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A pid and when it started: field 22 of /proc/PID/stat, clock ticks since boot (proc(5))."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The running process with this pid. Raises :class:`ProcessLookupError`."""
        started = _start_time(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return cls(pid=pid, started=started)

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Read what ``str()`` gives; None for anything else."""
        pid, _, started = text.partition("-")
        return cls(pid=int(pid), started=int(started)) if pid.isdecimal() and started.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}"

    @property
    def alive(self) -> bool:
        """Whether that very process still runs; one that is dead and not yet reaped does not."""
        return _start_time(self.pid) == self.started

    @property
    def program(self) -> Path:
        """The file that it runs; of one that is gone, or may not be asked, a path that nothing has."""
        try:
            return Path(f"/proc/{self.pid}/exe").readlink()
        except OSError:
            return Path()

    def end(self, patience: float) -> None:
        """TERM, then after ``patience`` seconds KILL, each only while it is still that process.

        Raises :class:`EngineError` if it does not end.
        """
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, _KILL_SECONDS)):
            deadline = time.monotonic() + seconds
            with contextlib.suppress(ProcessLookupError):
                if self.alive:
                    os.kill(self.pid, number)
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.02)
            if not self.alive:
                return
        raise EngineError(f"process {self.pid} does not end")


def processes_naming(path: Path) -> list[Process]:
    """Every process that has ``path``, a folder of our own making, in its command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in entry.read_bytes():
                found.append(Process.of(int(entry.parent.name)))
    return found


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name, field 2, may hold spaces and parentheses: count from the last one.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])
