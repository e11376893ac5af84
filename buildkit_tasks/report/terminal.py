"""A report as a table on a terminal, drawn by rich, which is imported only to draw."""

from __future__ import annotations

import importlib
import io
import itertools
import os
from typing import TYPE_CHECKING, TextIO

from buildkit_tasks.printable import escape_unprintable
from buildkit_tasks.report.rows import (
    Cell,
    Problem,
    Row,
    Severity,
    describe_kind,
    describe_problem,
    limit_problems,
)
from buildkit_tasks.report.summary import Summary, summarize
from buildkit_tasks.report.text import FULL_REPORT_HINT, head_lines, tail_lines, to_one_line
from buildkit_tasks.system.output import allows_colour

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from buildkit_tasks.report.model import Report

__all__ = [
    "has_unicode",
    "make_empty_table",
    "make_terminal_console",
    "needs_colour",
    "preload_rich",
    "print_table",
    "style_cell",
]

_UNLIMITED_WIDTH = 10_000  # columns: wider than any line, since every cell has a maximum width
_MAX_OUTPUT_LINES = 40  # of each stream of a failed run; report files have all of it
_MAX_MESSAGE_LINES = 10  # of one warning
_SEVERITY_STYLES = {
    Severity.GOOD: "green",
    Severity.WARNING: "yellow",
    Severity.BAD: "bold red",
    Severity.PLAIN: "",
}


def needs_colour(file: TextIO, environ: Mapping[str, str]) -> bool:
    """Return True for a terminal, except in CI and where NO_COLOR (no-color.org) is set."""
    return file.isatty() and allows_colour(environ)


def preload_rich() -> None:
    """Import what draws a table, while the process waits for something else."""
    for name in ("rich.console", "rich.table", "rich.text"):
        importlib.import_module(name)


def print_table(report: Report, file: TextIO, *, colour: bool, width: int | None = None) -> None:
    """Print a report's table, notes and summary line, then its failures and warnings.

    At most 20 problems of a platform are printed, and the number of the others. ``width`` is in columns,
    by default the terminal's; in CI, and in a file, lines of the table are never wrapped.
    """
    buffer = io.StringIO()
    console = _make_console(
        buffer, colour=colour, width=width or _terminal_width(file), force_terminal=colour
    )
    summary = summarize(report)
    _print_summary(summary, console, ascii_only=not has_unicode(file))
    for step, row in summary.failures:
        _print_problems(step, row, console)
    for step, row in summary.warnings:
        _print_warnings(step, row, console)
    _write_text(buffer.getvalue(), file)


def _terminal_width(file: TextIO) -> int:
    if os.environ.get("CI") or not file.isatty():
        return _UNLIMITED_WIDTH
    try:
        return os.get_terminal_size(file.fileno()).columns or _UNLIMITED_WIDTH
    except OSError:
        return _UNLIMITED_WIDTH


def has_unicode(file: TextIO) -> bool:
    """Return True if the file's encoding has box-drawing characters."""
    return (file.encoding or "utf-8").lower().startswith("utf")


def _write_text(text: str, file: TextIO) -> None:
    """Write text; characters that the file's encoding lacks are written as escapes."""
    encoding = file.encoding or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def make_terminal_console(file: TextIO, *, colour: bool) -> Console:
    """Return a rich console of the terminal's own size."""
    return _make_console(file, colour=colour, force_terminal=True)


def _make_console(file: TextIO, *, colour: bool, force_terminal: bool, width: int | None = None) -> Console:
    from rich.console import Console

    return Console(
        file=file,
        width=width,
        force_terminal=force_terminal,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _print_summary(summary: Summary, console: Console, *, ascii_only: bool) -> None:
    console.print(_build_table(summary, ascii_only=ascii_only))
    # Text is not wrapped, so that a path or a command can be copied.
    for note in summary.notes:
        console.print(f"  {note}", soft_wrap=True)
    console.print(f"  {summary.summary_line}", style=_SEVERITY_STYLES[summary.severity], soft_wrap=True)


def _build_table(summary: Summary, *, ascii_only: bool) -> RichTable:
    table = make_empty_table(ascii_only=ascii_only)
    for name in summary.columns:
        is_number = name == "Seconds"
        table.add_column(
            name,
            no_wrap=is_number or name == "Platform",
            overflow="fold",
            justify="right" if is_number else "left",
        )
    for line in summary.lines:
        table.add_row(*map(style_cell, line))
    return table


def make_empty_table(*, ascii_only: bool) -> RichTable:
    """Return a table without columns and lines, in ASCII if the terminal has no Unicode."""
    from rich import box
    from rich.table import Table as RichTable

    # With a left border: GitHub's runner executes a line that begins with `::`, spaces before it
    # included, and the name of a platform is whatever the image's index says.
    return RichTable(box=box.ASCII2 if ascii_only else box.ROUNDED, header_style="")


def style_cell(cell: Cell) -> Text:
    """Return a cell's text in the colour of its severity."""
    from rich.text import Text

    return Text(cell.text, style=_SEVERITY_STYLES[cell.severity])


def _print_problems(step: str, row: Row, console: Console) -> None:
    problems, omitted = limit_problems(row.problems)
    for problem in problems:
        _print_heading(Severity.BAD, step, row, problem.kind, console)
        _print_lines(escape_unprintable(describe_problem(problem)).split("\n"), console)
    _print_omitted(omitted, f"problems of {step} {row.name}", console)
    _print_lines(_iter_output_lines(row), console)


def _print_warnings(step: str, row: Row, console: Console) -> None:
    """Print the messages of warnings, those of one kind under one heading. Report files have the facts."""
    warnings, omitted = limit_problems(row.warnings)
    for kind, group in itertools.groupby(warnings, key=lambda warning: warning.kind):
        _print_heading(Severity.WARNING, step, row, kind, console)
        for warning in group:
            _print_lines(_warning_lines(warning), console)
    _print_omitted(omitted, f"warnings of {step} {row.name}", console)


def _print_heading(severity: Severity, step: str, row: Row, kind: str, console: Console) -> None:
    label = "FAILED" if severity is Severity.BAD else "WARNING"
    heading = " ".join(filter(None, (step, row.name, describe_kind(kind))))
    console.print(f"\n{label} {to_one_line(heading)}", style=_SEVERITY_STYLES[severity], soft_wrap=True)


def _print_lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(f"  | {line}", soft_wrap=True)


def _print_omitted(omitted: int, subject: str, console: Console) -> None:
    if omitted:
        _print_lines([f"({omitted} more {to_one_line(subject)}: {FULL_REPORT_HINT})"], console)


def _warning_lines(warning: Problem) -> list[str]:
    return head_lines(escape_unprintable(warning.message).split("\n"), _MAX_MESSAGE_LINES, FULL_REPORT_HINT)


def _iter_output_lines(row: Row) -> Iterator[str]:
    for name, text in row.outputs.items():
        yield f"{name}:"
        yield from (f"  {line}" for line in tail_lines(text, _MAX_OUTPUT_LINES))
