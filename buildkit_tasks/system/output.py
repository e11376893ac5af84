"""Write to standard output and standard error whose reader may have gone, as in a pipe to ``head``."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["allows_colour", "discard_output", "open_missing_output", "tolerate_closed_pipe"]


def allows_colour(environ: Mapping[str, str]) -> bool:
    """Return False in CI, and where NO_COLOR (no-color.org) is set."""
    return not environ.get("CI") and not environ.get("NO_COLOR")


@contextlib.contextmanager
def tolerate_closed_pipe(stream: IO[str]) -> Iterator[None]:
    """Flush the stream on exit; drop what is written to a pipe that nobody reads, now and from now on.

    The task goes on and ends with its own status: a build, a push or a file of a report is not lost because
    nobody wants to read more of the output.
    """
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        discard_output(stream)


def discard_output(stream: IO[str]) -> None:
    """Drop what the stream holds and what is written to it from now on.

    Python writes what is left in the buffer when it exits, and would fail again.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def open_missing_output() -> None:
    """Open standard output and error where the process was started without (``>&-``); nothing is kept."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the end
