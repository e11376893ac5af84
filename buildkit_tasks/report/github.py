"""A report in GitHub Actions: the step summary, and annotations of failures and warnings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from buildkit_tasks.printable import escape_unprintable
from buildkit_tasks.report.markdown import to_markdown, to_short_markdown
from buildkit_tasks.report.rows import Problem, Row, describe_problem, limit_problems
from buildkit_tasks.report.summary import summarize
from buildkit_tasks.report.text import FULL_REPORT_HINT
from buildkit_tasks.system.output import tolerate_closed_pipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.report.model import Report

__all__ = ["error_to_github", "report_to_github"]

# GitHub rejects a summary of more than 1 MiB per step (docs.github.com, "Workflow commands for
# GitHub Actions", step isolation and limits): then the table alone is written.
_SUMMARY_LIMIT = 1 << 20
_OMITTED_NOTE = (
    "\nThe failures and warnings are too long for a step summary of 1 MiB; "
    "the step's log has the first of them, a --report file all.\n"
)

_DATA_ESCAPES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY_ESCAPES = {**_DATA_ESCAPES, **str.maketrans({":": "%3A", ",": "%2C"})}


def report_to_github(
    report: Report,
    environ: Mapping[str, str],
    stream: TextIO | None = None,
) -> tuple[str, ...]:
    """Append the report to the step summary, and print an annotation for each failure and warning.

    Return the workflow commands that were printed to ``stream`` (stderr by default), none outside of
    GitHub Actions. A summary that cannot be written is a warning, not an error: the work is done.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return ()
    commands = (
        *_write_step_summary(report, environ.get("GITHUB_STEP_SUMMARY", "")),
        *_iter_annotations(report),
    )
    stream = stream or sys.stderr
    with tolerate_closed_pipe(stream):
        for command in commands:
            print(command, file=stream)
    return commands


def error_to_github(message: str, environ: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Print an annotation for an error that ended a task before it had a report."""
    if environ.get("GITHUB_ACTIONS") == "true":
        stream = stream or sys.stderr
        with tolerate_closed_pipe(stream):
            print(_format_command("error", "buildkit-tasks", message), file=stream)


def _write_step_summary(report: Report, path: str) -> Iterator[str]:
    """Append to the summary; yield a command that warns if that fails."""
    if not path:
        return
    try:
        _append_summary(report, Path(path))
    except OSError as error:
        yield _format_command("warning", "step summary", f"not written to {path}: {error.strerror}")


def _append_summary(report: Report, path: Path) -> None:
    with path.open("ab") as summary:
        remaining = _SUMMARY_LIMIT - os.fstat(summary.fileno()).st_size
        text = f"\n{to_markdown(report)}".encode()
        if len(text) > remaining:
            text = f"\n{to_short_markdown(report)}{_OMITTED_NOTE}".encode()
        summary.write(text)


def _iter_annotations(report: Report) -> Iterator[str]:
    summary = summarize(report)
    for step, row in summary.failures:
        yield from _annotate_problems("error", step, row, row.problems)
    for step, row in summary.warnings:
        yield from _annotate_problems("warning", step, row, row.warnings)


def _annotate_problems(name: str, step: str, row: Row, problems: tuple[Problem, ...]) -> Iterator[str]:
    """Yield a command for each of the first 20 problems, and one that counts the others."""
    listed, omitted = limit_problems(problems)
    for problem in listed:
        title = " ".join(filter(None, (step, row.name, problem.kind)))
        yield _format_command(name, title, describe_problem(problem))
    if omitted:
        title = " ".join(filter(None, (step, row.name)))
        yield _format_command(name, title, f"{omitted} more: {FULL_REPORT_HINT}")


def _format_command(name: str, title: str, message: str) -> str:
    """Return a workflow command, escaped as by actions/toolkit (packages/core/src/command.ts)."""
    escaped_title = escape_unprintable(title).translate(_PROPERTY_ESCAPES)
    return f"::{name} title={escaped_title}::{escape_unprintable(message).translate(_DATA_ESCAPES)}"
