"""The tasks as a program of its own, for repositories without a ``tasks.py``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_INTERRUPTED = 130  # as :class:`buildkit_tasks.errors.Interrupted`, whose import may be what is interrupted


def main() -> None:
    """Run ``buildkit-tasks TASK``."""
    _forget_current_folder()
    try:
        from buildkit_tasks.cli.program import create_program
        from buildkit_tasks.tasks import ns

        create_program(ns).run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(_INTERRUPTED)


def _forget_current_folder() -> None:
    """Import no module from the current folder, where ``python -m`` looks first: that may be anybody's."""
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109 - pathlib is slow to import
        del sys.path[0]


if __name__ == "__main__":
    main()
