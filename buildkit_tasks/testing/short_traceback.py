"""Short reports of this package's errors: the line of the test and the message, without the frames below."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import BuildkitTasksError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["shorten_traceback"]

_PACKAGE = Path(__file__).parents[1]


@contextlib.contextmanager
def shorten_traceback(config: pytest.Config, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Hide this package's frames, and the causes of the error, while pytest makes its report of the call.

    The message of a :class:`BuildkitTasksError` has all that a user needs. ``--full-trace`` shows the frames,
    and so does ``--pdb``, which is entered afterwards. Other exceptions are shown as they are.
    """
    full = call.excinfo
    error = full.value if full else None
    outer_frames = _frames_above_package(full.tb) if full else None
    if not isinstance(error, BuildkitTasksError) or config.getoption("fulltrace") or not outer_frames:
        yield
        return
    cause, suppress_context = error.__cause__, error.__suppress_context__
    call.excinfo = pytest.ExceptionInfo.from_exc_info((type(error), error, outer_frames))
    error.__cause__ = None  # which also suppresses the context
    try:
        yield
    finally:
        call.excinfo = full
        error.__cause__, error.__suppress_context__ = cause, suppress_context


def _frames_above_package(traceback: TracebackType) -> TracebackType | None:
    """Return the frames up to the one that calls this package; None if there is no such frame."""
    entries = []
    entry: TracebackType | None = traceback
    while entry is not None and not Path(entry.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE):
        entries.append(entry)
        entry = entry.tb_next
    frames = None
    for each in reversed(entries):
        frames = TracebackType(frames, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return frames
