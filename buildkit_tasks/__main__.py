"""The tasks as a program of its own, for repositories without a ``tasks.py``."""

from __future__ import annotations

import sys

__all__ = ["main"]

_INTERRUPTED = 130  # as :class:`buildkit_tasks.errors.Interrupted`, whose import may be what is interrupted


def main() -> None:
    """Run ``buildkit-tasks TASK``."""
    try:
        from buildkit_tasks.cli.program import create_program
        from buildkit_tasks.tasks import ns

        create_program(ns).run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
