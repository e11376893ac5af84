"""One invocation of a task: its settings and services, and everything that it shows to the user."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import threading
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.system.output import discard_output, tolerate_closed_pipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from invoke.context import Context

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.report import LiveTable
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.system.command import SubprocessRunner

__all__ = ["RunProgress", "TaskContext", "print_error_document"]


@dataclass(kw_only=True)
class TaskContext:
    """A task that runs: ``options`` by name, and those of them that are settings by the setting's key.

    ``flag_names`` are these as they are typed, also by the setting's key.
    ``result`` is the report, or the document, that was shown; ``exit_code`` the status to end with.
    """

    invoke_context: Context
    options: Mapping[str, Any]
    setting_flags: Mapping[str, Any]
    flag_names: Mapping[str, str]
    exit_code: int = field(default=0, init=False)
    result: object = field(default=None, init=False)
    _is_annotated: bool = field(default=False, init=False)

    @property
    def json_output(self) -> bool:
        """Return True if standard output is for one JSON document."""
        return bool(self.options["json"])

    @property
    def dry_run(self) -> bool:
        """Return True for ``--dry-run`` and for Invoke's own ``--dry``."""
        return bool(self.options["dry_run"] or self.invoke_context.config.run.dry)

    @property
    def report_paths(self) -> tuple[str, ...]:
        """Return the files of ``--report``."""
        return tuple(self.options.get("report") or ())

    def check_report_paths(self) -> None:
        """Raise :class:`UsageError` for a report file that cannot be written, before any work is done."""
        if self.report_paths:
            from buildkit_tasks.report import check_report_paths

            check_report_paths(self.report_paths)

    @cached_property
    def settings(self) -> Settings:
        """Return the settings: options over environment, Invoke's configuration and pyproject.toml."""
        from buildkit_tasks.config.settings import check_section_names, load_settings

        check_section_names(dict(self.invoke_context.config.items()))
        return load_settings(
            self.setting_flags,
            invoke=dict(self.invoke_context.config.get("buildkit") or {}),
            flag_names=self.flag_names,
        )

    @cached_property
    def commands(self) -> SubprocessRunner:
        """Return the runner of commands; a dry run prints them where the report would be printed."""
        from buildkit_tasks.system.command import SubprocessRunner

        return SubprocessRunner(
            dry_run=self.dry_run, dry_run_output=sys.stderr if self.json_output else sys.stdout
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """Return the pipeline under these settings."""
        from buildkit_tasks.pipeline.pipeline import Pipeline

        return Pipeline(settings=self.settings, commands=self.commands, notify=self.notify)

    @staticmethod
    def notify(message: str) -> None:
        """Print a message or an error on standard error, redacted and printable."""
        from buildkit_tasks.printable import escape_message
        from buildkit_tasks.system.command import redact

        with tolerate_closed_pipe(sys.stderr):
            print(escape_message(redact(message)), file=sys.stderr)

    def show_report(self, report: Any, failure_code: int = 1, *, even_dry_run: bool = False) -> None:
        """Show a report in every form asked for; ``failure_code`` is the status if it is not ok.

        A dry run that would have changed something has nothing to report.
        """
        self.result = report
        if self.dry_run and not even_dry_run:
            if self.json_output:
                self.print_result({"ok": True, "dry_run": True}, "")
            return
        from buildkit_tasks import report as render
        from buildkit_tasks.report.model import has_rows

        if not self.json_output and has_rows(report):  # the task prints the error that stopped it
            with tolerate_closed_pipe(sys.stdout):
                render.print_table(report, sys.stdout, colour=render.needs_colour(sys.stdout, os.environ))
        render.write_reports(report, self.report_paths)
        render.report_to_github(report, os.environ)
        if self.json_output:  # after the files: the error of one that fails is the only document
            with tolerate_closed_pipe(sys.stdout):
                sys.stdout.write(render.to_json(report))
        self._is_annotated = True
        self.exit_code = 0 if report.ok else failure_code

    def raise_in_dry_run(self, errors: Sequence[BuildkitTasksError]) -> None:
        """Raise the first error in a dry run, which has no report that could show it."""
        if self.dry_run and errors:
            raise errors[0]

    @contextlib.contextmanager
    def show_run_progress(self) -> Iterator[RunProgress | None]:
        """Give the observer of runs, or None if no table will be shown."""
        if self.json_output or self.dry_run:
            yield None
        elif not sys.stdout.isatty():
            yield RunProgress(live_table=None)
        else:
            from buildkit_tasks.report import open_live_table

            with open_live_table(sys.stdout, os.environ) as live_table:
                yield RunProgress(live_table=live_table)

    def print_result(self, document: Mapping[str, Any], text: str) -> None:
        """Print a result that is not a report: a document with ``--json``, otherwise a line of text."""
        self.result = document
        if self.json_output:
            _print_document(document)
        else:
            from buildkit_tasks.system.command import print_bytes_of_paths

            print_bytes_of_paths(text, sys.stdout)

    def explain_cache_error(self, error: OSError) -> BuildkitTasksError | None:
        """Return the error for a file of the cache directory that this user may not write, else None."""
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not isinstance(error.filename, str):
            return None
        from buildkit_tasks.config.settings import cache_error, cache_path

        try:
            settings = self.settings
        except (BuildkitTasksError, OSError):  # the error may be from reading them
            return None
        path, reason = Path(error.filename), error.strerror or str(error)
        return cache_error(settings, path, reason) if _is_at(path, cache_path(settings)) else None

    def show_error(self, error: BuildkitTasksError) -> int:
        """Print an error once, redacted, and return its exit code."""
        from buildkit_tasks.system.command import redact

        if self.options["debug"] or logging.getLogger().isEnabledFor(logging.DEBUG):
            self.notify("".join(traceback.format_exception(error)))
        try:
            if self.json_output:
                print_error_document(error)
            sys.stdout.flush()
        except OSError:  # this may be the error
            discard_output(sys.stdout)
        self.notify(f"error: {error}")
        if not self._is_annotated:
            from buildkit_tasks.report import error_to_github

            error_to_github(redact(str(error)), os.environ)
        return error.exit_code


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Update the live table as runs finish. Report modules are imported in a thread meanwhile."""

    live_table: LiveTable | None

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """Announce the runs by platform, command and CPU."""
        threading.Thread(target=_preload_renderers).start()
        if self.live_table is not None:
            self.live_table.expect_runs(runs)

    def __call__(self, result: RunResult) -> None:
        """Show the result of a run."""
        if self.live_table is not None:
            self.live_table(result)


def _is_at(path: Path, folder: Path) -> bool:
    """Return True for a path in a directory, and for the parents that could not be created for it."""
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def print_error_document(error: BuildkitTasksError) -> None:
    """Print the JSON document of an error on standard output."""
    from buildkit_tasks.system.command import redact

    _print_document({"ok": False, "error": redact(str(error)), "exit_code": error.exit_code})


def _print_document(document: Mapping[str, Any]) -> None:
    from buildkit_tasks.printable import escape_json
    from buildkit_tasks.report.model import add_schema_version

    with tolerate_closed_pipe(sys.stdout):
        print(escape_json(json.dumps(add_schema_version(document))))


def _preload_renderers() -> None:
    from buildkit_tasks.report import preload_rich

    preload_rich()
