"""Show that the cost of reading a hostile input grows linearly with its size."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_RUNS = 2


def cpu_seconds(call: Callable[[_T], object], argument: _T) -> float:
    """Return the CPU seconds of a call: the least of two, since other load only adds to it."""
    costs = []
    for _ in range(_RUNS):
        started = time.process_time()
        call(argument)
        costs.append(time.process_time() - started)
    return min(costs)


def assert_linear(call: Callable[[_T], object], make: Callable[[int], _T], size: int) -> None:
    """Assert that twice the size costs at most about twice as much; a quadratic reader takes four times.

    ``make`` returns an input of the given size.
    """
    small = cpu_seconds(call, make(size // 2))
    # Below some milliseconds the resolution of the clock and fixed costs count more.
    assert cpu_seconds(call, make(size)) < 3 * small + 0.02
