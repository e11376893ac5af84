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

from buildkit_tasks.cli.invoke_parser import DeclaredArgument, OptionalPositionalArgument
from buildkit_tasks.errors import BuildkitTasksError, Interrupted, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from invoke.context import Context
    from invoke.parser.argument import Argument

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.pipeline.runs import ImageRunner
    from buildkit_tasks.report import LiveTable
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.system.command import SubprocessRunner

__all__ = ["DeclaredTask", "Option", "TaskContext", "create_namespace", "task"]


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


_COMMON_OPTIONS = (
    Option(
        name="json",
        default=False,
        help="print one JSON document on standard output, everything else on standard error",
    ),
    Option(name="dry_run", default=False, help="print the exact commands and change nothing"),
    Option(name="debug", default=False, help="show the traceback of an error"),
)


@dataclass(kw_only=True)
class TaskContext:
    """One task's invocation: what it was given, and how it speaks to the user."""

    invoke_context: Context
    options: Mapping[str, Any]
    setting_flags: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    @property
    def json_output(self) -> bool:
        """Whether standard output is for one JSON document."""
        return bool(self.options["json"])

    @property
    def dry_run(self) -> bool:
        """Whether to show the commands instead of running them: our option, or Invoke's ``--dry``."""
        return bool(self.options["dry_run"] or self.invoke_context.config.run.dry)

    @property
    def report_paths(self) -> tuple[str, ...]:
        """The report files asked for."""
        return tuple(self.options.get("report") or ())

    @cached_property
    def settings(self) -> Settings:
        """The settings that hold for this invocation."""
        from buildkit_tasks.config.settings import load_settings

        return load_settings(
            self.setting_flags, invoke=dict(self.invoke_context.config.get("buildkit") or {})
        )

    @cached_property
    def commands(self) -> SubprocessRunner:
        """The seam to other programs; a dry run goes to where the table would."""
        from buildkit_tasks.system.command import SubprocessRunner

        return SubprocessRunner(
            dry_run=self.dry_run, dry_run_output=sys.stderr if self.json_output else sys.stdout
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """The line of services."""
        from buildkit_tasks.pipeline.pipeline import Pipeline

        return Pipeline(settings=self.settings, commands=self.commands, notify=self.notify)

    def image_runner(self, settings: Settings) -> ImageRunner:
        """What runs images under these settings. The pipeline is imported only if an engine is needed."""
        from buildkit_tasks.pipeline.images import ImageResolver
        from buildkit_tasks.pipeline.runs import ImageRunner

        def pipeline() -> Pipeline:
            return self.pipeline if settings is self.settings else self.pipeline.with_settings(settings)

        return ImageRunner(
            settings=settings,
            commands=self.commands,
            notify=self.notify,
            resolver=ImageResolver(settings=settings, commands=self.commands),
            get_engine=lambda: pipeline().engine,
            open_containers=lambda image, platforms: pipeline().open_container_backend(image, platforms),
        )

    @staticmethod
    def notify(message: str) -> None:
        """Say what goes on, on standard error."""
        from buildkit_tasks.system.command import redact

        print(redact(message), file=sys.stderr, flush=True)

    def show_report(self, report: Any, failure_code: int = 1, *, even_dry_run: bool = False) -> None:
        """Show a report in every form asked for; ``code`` is the exit code if it is not ok.

        A dry run that would have changed something has nothing to report.
        """
        if self.dry_run and not even_dry_run:
            if self.json_output:
                self.print_result({"ok": True, "dry_run": True}, "")
            return
        from buildkit_tasks import report as render

        if not self.json_output:
            render.print_table(report, sys.stdout, colour=render.needs_colour(sys.stdout, os.environ))
            sys.stdout.flush()
        render.write_reports(report, self.report_paths)
        render.report_to_github(report, os.environ)
        if self.json_output:  # last: had a report file failed, its error would be the one document
            sys.stdout.write(render.to_json(report))
            sys.stdout.flush()
        self.exit_code = 0 if report.ok else failure_code

    @contextlib.contextmanager
    def show_run_progress(self) -> Iterator[RunProgress | None]:
        """Give what is told of runs, for a table; None where none will be shown."""
        if self.json_output or self.dry_run:
            yield None
            return
        with contextlib.ExitStack() as stack:
            live_table = None
            if sys.stdout.isatty():
                from buildkit_tasks.report import open_live_table

                live_table = stack.enter_context(open_live_table(sys.stdout, os.environ))
            yield RunProgress(live_table=live_table)

    def print_result(self, document: Mapping[str, Any], text: str) -> None:
        """Show a result that is no report: a document with ``--json``, else a line of text."""
        print(json.dumps(document) if self.json_output else text, flush=True)

    def show_error(self, error: BuildkitTasksError) -> int:
        """Show an error once, redacted, and give its exit code."""
        from buildkit_tasks.system.command import redact

        if self.options["debug"] or logging.getLogger().isEnabledFor(logging.DEBUG):
            self.notify("".join(traceback.format_exception(error)))
        if self.json_output:
            document = {"ok": False, "error": redact(str(error)), "exit_code": error.exit_code}
            print(json.dumps(document), flush=True)
        self.notify(f"error: {error}")
        return error.exit_code


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Shows runs as they end, on a terminal; what draws the report is imported while guests run."""

    live_table: LiveTable | None

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """What will run: platform, command and CPU."""
        threading.Thread(target=_preload_renderers).start()
        if self.live_table is not None:
            self.live_table.expect_runs(runs)

    def __call__(self, result: RunResult) -> None:
        """How one of them ended."""
        if self.live_table is not None:
            self.live_table(result)


def _preload_renderers() -> None:
    from buildkit_tasks.report import preload_rich

    preload_rich()


def task(*options: Option) -> Callable[[Callable[[TaskContext], None]], DeclaredTask]:
    """Make an Invoke task of a function that takes an :class:`Edge`, with these options.

    Every task also has ``--json``, ``--dry-run`` and ``--debug``.
    """
    return lambda body: DeclaredTask(body, (*options, *_COMMON_OPTIONS))


class DeclaredTask(Task[Any]):
    """An Invoke task made of declared options; a positional one may be left out."""

    def __init__(self, body: Callable[[TaskContext], None], options: tuple[Option, ...]) -> None:
        self.options = {option.name: option for option in options}
        super().__init__(
            _make_invoke_body(body, options),
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
            argument.__class__ = OptionalPositionalArgument if option.positional else DeclaredArgument
            if option.short:
                argument.names = (*argument.names, option.short)
        return arguments


def _make_invoke_body(
    body: Callable[[TaskContext], None], options: tuple[Option, ...]
) -> Callable[..., None]:
    context_parameter = inspect.Parameter("c", inspect.Parameter.POSITIONAL_ONLY)
    option_parameters = (
        # None for a list: Invoke takes the type of any other default for that of one value.
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default if option.default != () else None,
        )
        for option in options
    )
    signature = inspect.Signature([context_parameter, *option_parameters])

    def invoke_body(c: Context, **kwargs: Any) -> None:
        arguments = signature.bind(c, **kwargs)
        arguments.apply_defaults()
        values = {name: () if value is None else value for name, value in arguments.kwargs.items()}
        setting_flags = {option.setting: values[option.name] for option in options if option.setting}
        exit_code = _run_body(
            TaskContext(invoke_context=c, options=values, setting_flags=setting_flags), body
        )
        if exit_code:
            raise Exit(code=exit_code)

    invoke_body.__signature__ = signature  # type: ignore[attr-defined]
    invoke_body.__name__, invoke_body.__doc__, invoke_body.__module__ = (
        body.__name__,
        body.__doc__,
        body.__module__,
    )
    return invoke_body


def _run_body(ctx: TaskContext, body: Callable[[TaskContext], None]) -> int:
    previous_handler = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        if ctx.report_paths:
            from buildkit_tasks.report import check_report_paths

            check_report_paths(ctx.report_paths)
        body(ctx)
    except KeyboardInterrupt:
        return ctx.show_error(Interrupted("interrupted"))
    except BuildkitTasksError as error:
        return ctx.show_error(error)
    except OSError as error:
        return ctx.show_error(_translate_os_error(error))
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    return ctx.exit_code


def _translate_os_error(error: OSError) -> BuildkitTasksError:
    """A file that cannot be read or written, in words; a full disk is a limit."""
    error_class = LimitExceeded if error.errno in (errno.ENOSPC, errno.EDQUOT) else BuildkitTasksError
    location = f"{error.filename}: " if error.filename is not None else ""
    translated = error_class(f"{location}{error.strerror or error}")
    translated.__cause__ = error
    return translated


def _raise_interrupt(*_: object) -> None:
    """TERM is answered like Ctrl-C: children are ended, files and containers removed."""
    raise KeyboardInterrupt


def create_namespace(*tasks: DeclaredTask) -> Collection:
    """The tasks as a namespace, its settings known to Invoke (so that it shows and merges them)."""
    from buildkit_tasks.config.settings import SETTINGS_KEYS

    namespace = Collection(*tasks)
    # None, not the defaults: Invoke cannot read a list from the environment, and None is "not given".
    namespace.configure({"buildkit": dict.fromkeys(SETTINGS_KEYS)})
    return namespace
