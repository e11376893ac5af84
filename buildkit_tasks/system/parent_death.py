"""Let a process end with the one that started it, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["signal_on_parent_death"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only


def signal_on_parent_death(number: signal.Signals, parent_pid: int) -> None:
    """Get a signal when the parent ends, at once if it has ended already: PR_SET_PDEATHSIG, prctl(2).

    The parent is the thread that started this process. Other systems than Linux have nothing like it.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        signal.raise_signal(number)
