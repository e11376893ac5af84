"""Measure alternatives in turns, so that noise on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Row", "command", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: the medians of both sides in ``unit``, and the limit for their ratio.

    Without ``theirs`` the limit applies to ``ours`` alone. A row without a ``limit`` is informative.
    """

    title: str
    ours: float
    theirs: float | None = None
    limit: float | None = None
    rounds: int
    absolute: bool = False
    unit: str = "s"

    @property
    def measure(self) -> float:
        """Return the ratio of ours to theirs, the difference for an absolute limit, or ours alone."""
        if self.theirs is None:
            return self.ours
        return self.ours - self.theirs if self.absolute else self.ours / self.theirs

    @property
    def is_within_limit(self) -> bool:
        """Return True if the limit was not exceeded."""
        return self.limit is None or self.measure <= self.limit


def command(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Callable[[], None]:
    """Return a function that runs a command; its failure ends the benchmark with the command's output."""

    def run_side() -> None:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            completed = done.stderr[-2000:] or done.stdout[-2000:]
            raise SystemExit(f"{' '.join(argv)} failed with {done.returncode}:\n{completed}")

    return run_side


def compare(*sides: Callable[[], None], rounds: int, before: Callable[[], None] | None = None) -> list[float]:
    """Return the median seconds of each side; ``before`` is called untimed before each measurement."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, times in zip(sides, seconds, strict=True):
            if before is not None:
                before()
            started = time.perf_counter()
            side()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]
