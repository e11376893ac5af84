"""The edge between Invoke and the services: options that every task has, errors, exit codes."""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import logging
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.tasks import Task

from buildkit_tasks.cli.invoke_parser import OptionalPositional, OwnArgument
from buildkit_tasks.errors import BuildkitTasksError, Interrupted, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from invoke.context import Context
    from invoke.parser.argument import Argument

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Line
    from buildkit_tasks.report import LiveRuns
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.system.command import Commands

__all__ = ["Edge", "Job", "Option", "collection", "job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of tasks, declared once: ``setting`` is the key of the settings that it sets.

    ``default`` also tells Invoke what it is: text, False for a flag, an empty tuple for a list.
    """

    name: str
    help: str
    default: str | bool | tuple[()] = ""
    setting: str = ""
    short: str = ""
    positional: bool = False


_COMMON = (
    Option(
        name="json",
        default=False,
        help="print one JSON document on standard output, everything else on standard error",
    ),
    Option(name="dry_run", default=False, help="print the exact commands and change nothing"),
    Option(name="debug", default=False, help="show the traceback of an error"),
)


@dataclass(kw_only=True)
class Edge:
    """One task's invocation: what it was given, and how it speaks to the user."""

    context: Context
    options: Mapping[str, Any]
    flags: Mapping[str, Any]
    code: int = field(default=0, init=False)

    @property
    def json(self) -> bool:
        """Whether standard output is for one JSON document."""
        return bool(self.options["json"])

    @property
    def dry_run(self) -> bool:
        """Whether to show the commands instead of running them: our option, or Invoke's ``--dry``."""
        return bool(self.options["dry_run"] or self.context.config.run.dry)

    @property
    def reports(self) -> tuple[str, ...]:
        """The report files asked for."""
        return tuple(self.options.get("report") or ())

    @cached_property
    def settings(self) -> Settings:
        """The settings that hold for this invocation."""
        from buildkit_tasks.config.settings import load

        return load(self.flags, invoke=dict(self.context.config.get("buildkit") or {}))

    @cached_property
    def run(self) -> Commands:
        """The seam to other programs; a dry run goes to where the table would."""
        from buildkit_tasks.system.command import Commands

        return Commands(dry_run=self.dry_run, echo=sys.stderr if self.json else sys.stdout)

    @cached_property
    def line(self) -> Line:
        """The line of services."""
        from buildkit_tasks.pipeline.pipeline import Line

        return Line(settings=self.settings, run=self.run, tell=self.tell)

    @staticmethod
    def tell(message: str) -> None:
        """Say what goes on, on standard error."""
        from buildkit_tasks.system.command import redact

        print(redact(message), file=sys.stderr, flush=True)

    def show(self, report: Any, code: int = 1, *, always: bool = False) -> None:
        """Show a report in every form asked for; ``code`` is the exit code if it is not ok.

        A dry run that would have changed something has nothing to report.
        """
        if self.dry_run and not always:
            if self.json:
                self.say({"ok": True, "dry_run": True}, "")
            return
        from buildkit_tasks import report as render

        if not self.json:
            render.print_table(report, sys.stdout, colour=render.wants_colour(sys.stdout, os.environ))
            sys.stdout.flush()
        render.write_reports(report, self.reports)
        render.announce_in_github(report, os.environ)
        if self.json:  # last: had a report file failed, its error would be the one document
            sys.stdout.write(render.to_json(report))
            sys.stdout.flush()
        self.code = 0 if report.ok else code

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watched | None]:
        """Give what is told of runs, for a table; None where none will be shown."""
        if self.json or self.dry_run:
            yield None
            return
        with contextlib.ExitStack() as stack:
            live = None
            if sys.stdout.isatty():
                from buildkit_tasks.report import live_runs

                live = stack.enter_context(live_runs(sys.stdout, os.environ))
            yield Watched(live=live)

    def say(self, document: Mapping[str, Any], text: str) -> None:
        """Show a result that is no report: a document with ``--json``, else a line of text."""
        print(json.dumps(document) if self.json else text, flush=True)

    def fail(self, error: BuildkitTasksError) -> int:
        """Show an error once, redacted, and give its exit code."""
        from buildkit_tasks.system.command import redact

        if self.options["debug"] or logging.getLogger().isEnabledFor(logging.DEBUG):
            self.tell("".join(traceback.format_exception(error)))
        if self.json:
            told = {"ok": False, "error": redact(str(error)), "exit_code": error.exit_code}
            print(json.dumps(told), flush=True)
        self.tell(f"error: {error}")
        return error.exit_code


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Shows runs as they end, on a terminal; what draws the report is imported while guests run."""

    live: LiveRuns | None

    def expect(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """What will run: platform, command and CPU."""
        threading.Thread(target=_import_what_draws).start()
        if self.live is not None:
            self.live.expect(runs)

    def __call__(self, result: RunResult) -> None:
        """How one of them ended."""
        if self.live is not None:
            self.live(result)


def _import_what_draws() -> None:
    from buildkit_tasks.report import render_ahead

    render_ahead()


def job(*options: Option) -> Callable[[Callable[[Edge], None]], Job]:
    """Make an Invoke task of a function that takes an :class:`Edge`, with these options.

    Every task also has ``--json``, ``--dry-run`` and ``--debug``.
    """
    return lambda body: Job(body, (*options, *_COMMON))


class Job(Task[Any]):
    """An Invoke task made of declared options; a positional one may be left out."""

    def __init__(self, body: Callable[[Edge], None], options: tuple[Option, ...]) -> None:
        self.options = {option.name: option for option in options}
        super().__init__(
            _wrapped(body, options),
            iterable=[option.name for option in options if option.default == ()],
            positional=[],
            auto_shortflags=False,
            help={option.name: option.help for option in options},
        )

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """The arguments, with their short names and the optional positional."""
        arguments: list[Argument] = super().get_arguments(ignore_unknown_help)
        for argument in arguments:
            option = self.options[str(argument.name)]
            argument.__class__ = OptionalPositional if option.positional else OwnArgument
            if option.short:
                argument.names = (*argument.names, option.short)
        return arguments


def _wrapped(body: Callable[[Edge], None], options: tuple[Option, ...]) -> Callable[..., None]:
    first = inspect.Parameter("c", inspect.Parameter.POSITIONAL_ONLY)
    own = (
        # None for a list: Invoke takes the type of any other default for that of one value.
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default if option.default != () else None,
        )
        for option in options
    )
    signature = inspect.Signature([first, *own])

    def call(c: Context, **kwargs: Any) -> None:
        bound = signature.bind(c, **kwargs)
        bound.apply_defaults()
        given = {name: () if value is None else value for name, value in bound.kwargs.items()}
        flags = {option.setting: given[option.name] for option in options if option.setting}
        code = _run(Edge(context=c, options=given, flags=flags), body)
        if code:
            raise Exit(code=code)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__name__, call.__doc__, call.__module__ = body.__name__, body.__doc__, body.__module__
    return call


def _run(edge: Edge, body: Callable[[Edge], None]) -> int:
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if edge.reports:
            from buildkit_tasks.report import check_report_paths

            check_report_paths(edge.reports)
        body(edge)
    except KeyboardInterrupt:
        return edge.fail(Interrupted("interrupted"))
    except BuildkitTasksError as error:
        return edge.fail(error)
    except OSError as error:
        return edge.fail(_worded(error))
    finally:
        signal.signal(signal.SIGTERM, previous)
    return edge.code


def _worded(error: OSError) -> BuildkitTasksError:
    """A file that cannot be read or written, in words; a full disk is a limit."""
    kind = LimitExceeded if error.errno in (errno.ENOSPC, errno.EDQUOT) else BuildkitTasksError
    where = f"{error.filename}: " if error.filename is not None else ""
    worded = kind(f"{where}{error.strerror or error}")
    worded.__cause__ = error
    return worded


def _interrupt(*_: object) -> None:
    """TERM is answered like Ctrl-C: children are ended, files and containers removed."""
    raise KeyboardInterrupt


def collection(*jobs: Job) -> Collection:
    """The tasks as a namespace, its settings known to Invoke (so that it shows and merges them)."""
    from buildkit_tasks.config.settings import KEYS

    namespace = Collection(*jobs)
    # None, not the defaults: Invoke cannot read a list from the environment, and None is "not given".
    namespace.configure({"buildkit": dict.fromkeys(KEYS)})
    return namespace
