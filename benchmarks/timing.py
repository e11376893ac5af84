"""Measure two or more ways to do the same, taking turns, so that a noisy machine hits all alike."""

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
    """One promise: the medians of both sides in ``unit``, and what their ratio must not pass.

    Without ``theirs`` the limit is for ours alone; without a ``limit`` the row only informs.
    """

    promise: str
    ours: float
    theirs: float | None = None
    limit: float | None = None
    rounds: int
    absolute: bool = False
    unit: str = "s"

    @property
    def measure(self) -> float:
        """The ratio of ours to theirs, for an absolute promise the difference, else ours alone."""
        if self.theirs is None:
            return self.ours
        return self.ours - self.theirs if self.absolute else self.ours / self.theirs

    @property
    def holds(self) -> bool:
        """Whether the promise was kept in this run."""
        return self.limit is None or self.measure <= self.limit


def command(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Callable[[], None]:
    """A side that runs a command; its failure ends the benchmark with what it said."""

    def side() -> None:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr[-2000:] or done.stdout[-2000:]
            raise SystemExit(f"{' '.join(argv)} failed with {done.returncode}:\n{said}")

    return side


def compare(*sides: Callable[[], None], rounds: int, before: Callable[[], None] | None = None) -> list[float]:
    """The median seconds of each side; ``before`` is called, untimed, ahead of every measurement."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, times in zip(sides, seconds, strict=True):
            if before is not None:
                before()
            started = time.perf_counter()
            side()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]
