"""End work of the main thread when its time is over, in the midst of a loop or of waiting for a socket."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TimeOver", "time_limit"]

_SHORTEST = 1e-6  # seconds; setitimer(2) takes 0 for no timer
_LONGEST = 1e9
_REPEAT_SECONDS = 0.25


class TimeOver(BaseException):
    """The time is over. As KeyboardInterrupt, it is no Exception: no handler of errors may end it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeOver` in the block after ``seconds``; 0 means never.

    It interrupts Python code and system calls, as Ctrl-C does, but not a name look-up. A timer of the caller
    is set again afterwards. Raises :class:`UsageError` in another thread than the main one: only that one
    gets signals.
    """
    if not seconds:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("a time limit works in the main thread only", hint="set verify_timeout to 0")
    is_over = False

    def end_block(number: int, frame: object) -> None:
        del number, frame
        # The signal repeats, because an error in a finalizer is ignored; it must not disturb the clean-up.
        if not is_over and not _is_raised():
            raise TimeOver

    previous_handler = signal.signal(signal.SIGALRM, end_block)
    previous_delay, previous_interval = signal.setitimer(
        signal.ITIMER_REAL, min(max(seconds, _SHORTEST), _LONGEST), _REPEAT_SECONDS
    )
    try:
        try:
            yield
        finally:
            is_over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        signal.setitimer(signal.ITIMER_REAL, previous_delay, previous_interval)


def _is_raised() -> bool:
    """Return True if this thread handles a :class:`TimeOver`, or an error that its handling has raised."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, TimeOver):
        error = error.__context__
    return error is not None
