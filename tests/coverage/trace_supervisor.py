"""Run a program and record its line pairs: trace_supervisor.py FILE PROGRAM ARGUMENT...

A pair holds the numbers of two lines that were executed one after the other in a function. A negative number
stands for the entry of the code that begins on that line, or for its exit, as in coverage.py's data.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from types import FrameType
from typing import Any

_FD = 900  # higher than those that the supervisor handles


def main() -> None:
    """Run the program as ``__main__``, with its path and arguments in ``sys.argv``."""
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, _FD, inheritable=False)
    os.close(fd)
    sys.argv[:] = sys.argv[2:]
    program = sys.argv[0]
    seen: set[tuple[int, int]] = set()

    def record(pair: tuple[int, int]) -> None:
        if pair not in seen:
            seen.add(pair)
            with contextlib.suppress(
                OSError
            ):  # all descriptors are closed, or nothing may be written any more
                os.write(_FD, b"%d %d\n" % pair)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001 - of sys.settrace
        if frame.f_code.co_filename != program:
            return None
        entry = -frame.f_code.co_firstlineno
        last = entry

        def trace_frame(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001
            nonlocal last
            if event == "line":
                record((last, frame.f_lineno))
                last = frame.f_lineno
            elif event == "return":
                record((last, entry))
            return trace_frame

        return trace_frame

    sys.settrace(trace)
    runpy.run_path(program, run_name="__main__")


main()
