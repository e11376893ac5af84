"""The tasks as a program of its own, for repositories without a ``tasks.py``."""

from __future__ import annotations

from importlib.metadata import version

from invoke.program import Program

from buildkit_tasks.tasks import ns

__all__ = ["main"]


def main() -> None:
    """Run ``buildkit-tasks TASK``."""
    Program(namespace=ns, version=version("buildkit-tasks"), binary="buildkit-tasks").run()


if __name__ == "__main__":
    main()
