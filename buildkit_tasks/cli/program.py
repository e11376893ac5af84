"""The program ``buildkit-tasks``: Invoke's, with the exit codes of the tasks."""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from invoke.config import Config
from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from buildkit_tasks.cli.invoke_parser import CommandLineError, unknown_task_error
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.output import open_missing_output, tolerate_closed_pipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from invoke.collection import Collection

__all__ = ["TaskProgram", "create_program"]


class ReadableConfig(Config):
    """Invoke's configuration without the user's file if the home directory is closed to this user."""

    def load_user(self, merge: bool = True) -> None:
        """Load ``~/.invoke.yaml`` and its like."""
        with contextlib.suppress(PermissionError):
            super().load_user(merge)


class TaskProgram(Program):
    """Invoke's program; every usage error ends with 2, and Ctrl-C is raised to the caller."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002 - Invoke's name
        """Run the tasks of a command line and exit. Raises KeyboardInterrupt."""
        open_missing_output()
        try:
            with tolerate_closed_pipe(sys.stdout):  # Invoke prints the output of --list and others
                super().run(argv, exit=exit)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from end
            raise
        finally:
            with tolerate_closed_pipe(sys.stdout):
                sys.stdout.flush()

    def parse_core(self, argv: list[str] | None) -> None:
        """Read the options before the first task."""
        with _usage_errors():
            super().parse_core(argv)

    def parse_cleanup(self) -> None:
        """Do what ``--help``, ``--list`` and others ask for."""
        task = self.args.help.value
        if isinstance(task, str) and task not in self.parser.contexts:
            raise CommandLineError(unknown_task_error(task, self.parser.contexts))
        with _usage_errors():
            super().parse_cleanup()


def create_program(tasks: Collection) -> TaskProgram:
    """Return the program that has these tasks."""
    return TaskProgram(
        namespace=tasks,
        version=version("buildkit-tasks"),
        binary="buildkit-tasks",
        config_class=ReadableConfig,
    )


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Give Invoke's own usage errors, and its ValueError for ``--list-depth=x``, the status of one."""
    try:
        yield
    except CommandLineError:
        raise
    except (ParseError, ValueError) as error:
        raise CommandLineError(UsageError(str(error))) from error
    except Exit as error:
        if error.code:
            raise CommandLineError(UsageError(error.message or "")) from error
        raise
