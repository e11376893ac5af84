"""A report as a table for people, drawn by rich, which is imported only to draw."""

from __future__ import annotations

import importlib
import io
import itertools
import os
from typing import TYPE_CHECKING, TextIO

from buildkit_tasks.report.cases import (
    Case,
    Problem,
    describe_problem,
    iter_failures,
    iter_warnings,
    limit_problems,
)
from buildkit_tasks.report.summary import Cell, Severity, SummaryTable, build_summary_table
from buildkit_tasks.report.text import escape_unprintable, tail_lines, to_one_line

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

_UNLIMITED_WIDTH = 10_000  # columns: wider than any row, since every cell is cut to a length
_MAX_OUTPUT_LINES = 40  # of each stream of a failing run; report files have all of it
_MAX_MESSAGE_LINES = 10  # of one warning
_SEVERITY_STYLES = {
    Severity.GOOD: "green",
    Severity.WARNING: "yellow",
    Severity.BAD: "bold red",
    Severity.PLAIN: "",
}


def needs_colour(file: TextIO, environ: Mapping[str, str]) -> bool:
    """Notify whether to colour: on a terminal, outside CI, and unless NO_COLOR (no-color.org) is set."""
    return file.isatty() and not environ.get("CI") and not environ.get("NO_COLOR")


def preload_rich() -> None:
    """Import what a table is drawn with, for a moment at which the processor waits."""
    for name in ("rich.console", "rich.table", "rich.text"):
        importlib.import_module(name)


def print_table(report: Report, file: TextIO, *, colour: bool, width: int | None = None) -> None:
    """Print a report's table, its notes and closing line, what failed, and what is worth a look.

    Of the problems of one platform the first ones are shown, and it is said how many are not.
    ``width`` is in columns. Without one a terminal's own is taken; in CI, or where the file is
    no terminal, rows are as wide as their words and never broken.
    """
    buffer = io.StringIO()
    console = _make_console(
        buffer, colour=colour, width=width or _terminal_width(file), force_terminal=colour
    )
    _print_summary(build_summary_table(report), console, ascii_only=not has_unicode(file))
    for step, case in iter_failures(report):
        _print_problems(step, case, console)
    for step, case in iter_warnings(report):
        _print_warnings(step, case, console)
    _write_text(buffer.getvalue(), file)


def _terminal_width(file: TextIO) -> int:
    """Give a terminal's width in columns, and no limit to a place that has none of its own."""
    if os.environ.get("CI") or not file.isatty():
        return _UNLIMITED_WIDTH
    try:
        return os.get_terminal_size(file.fileno()).columns or _UNLIMITED_WIDTH
    except OSError:
        return _UNLIMITED_WIDTH


def has_unicode(file: TextIO) -> bool:
    """Notify whether lines can be drawn there."""
    return (file.encoding or "utf-8").lower().startswith("utf")


def _write_text(text: str, file: TextIO) -> None:
    """Write text to a file whose encoding may not have every character of it."""
    encoding = file.encoding or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def make_terminal_console(file: TextIO, *, colour: bool) -> Console:
    """Give a terminal that can be drawn on, of its own size."""
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


def _print_summary(table: SummaryTable, console: Console, *, ascii_only: bool) -> None:
    console.print(_build_rich_table(table, ascii_only=ascii_only))
    # Lines of text are not wrapped: a path or a command to copy stays in one piece.
    for note in table.notes:
        console.print(f"  {note}", soft_wrap=True)
    console.print(f"  {table.summary_line}", style=_SEVERITY_STYLES[table.severity], soft_wrap=True)


def _build_rich_table(table: SummaryTable, *, ascii_only: bool) -> RichTable:
    rich_table = make_empty_table(ascii_only=ascii_only)
    for name in table.columns:
        rich_table.add_column(
            name,
            no_wrap=name in ("Platform", "Seconds"),
            overflow="fold",
            justify="right" if name == "Seconds" else "left",
        )
    for row in table.rows:
        rich_table.add_row(*(style_cell(cell) for cell in row))
    return rich_table


def make_empty_table(*, ascii_only: bool) -> RichTable:
    """Give a table without columns and rows; ``plain`` if lines cannot be drawn."""
    from rich import box
    from rich.table import Table as RichTable

    # A drawn left edge: GitHub's runner obeys a line whose first word begins with `::`, even
    # after spaces, and a platform's name is whatever the image's index says.
    return RichTable(box=box.ASCII2 if ascii_only else box.ROUNDED, header_style="")


def style_cell(cell: Cell) -> Text:
    """Give a cell's words in their colour."""
    from rich.text import Text

    return Text(cell.text, style=_SEVERITY_STYLES[cell.severity])


def _print_problems(step: str, case: Case, console: Console) -> None:
    problems, omitted = limit_problems(case.problems)
    for problem in problems:
        _print_heading(Severity.BAD, step, case, problem.kind, console)
        _print_lines(escape_unprintable(describe_problem(problem)).split("\n"), console)
    _print_omitted(omitted, f"problems of {step} {case.name}", console)
    _print_lines(_iter_output(case), console)


def _print_warnings(step: str, case: Case, console: Console) -> None:
    """Print what warnings say, those of one kind under one head; report files have their facts too."""
    warnings, omitted = limit_problems(case.warnings)
    for kind, group in itertools.groupby(warnings, key=lambda warning: warning.kind):
        _print_heading(Severity.WARNING, step, case, kind, console)
        for warning in group:
            _print_lines(_first_lines(warning), console)
    _print_omitted(omitted, f"warnings of {step} {case.name}", console)


def _print_heading(severity: Severity, step: str, case: Case, kind: str, console: Console) -> None:
    label = "FAILED" if severity is Severity.BAD else "WARNING"
    heading = " ".join(part for part in (step, case.name, kind) if part)
    console.print(f"\n{label} {to_one_line(heading)}", style=_SEVERITY_STYLES[severity], soft_wrap=True)


def _print_lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(f"  | {line}", soft_wrap=True)


def _print_omitted(omitted: int, subject: str, console: Console) -> None:
    if omitted:
        _print_lines([f"({omitted} more {to_one_line(subject)}: a --report file has them all)"], console)


def _first_lines(warning: Problem) -> list[str]:
    lines = escape_unprintable(warning.message).split("\n")
    omitted = len(lines) - _MAX_MESSAGE_LINES
    if omitted <= 0:
        return lines
    return [*lines[:_MAX_MESSAGE_LINES], f"({omitted} more lines: a --report file has them all)"]


def _iter_output(case: Case) -> Iterator[str]:
    for name, text in (("stdout", case.stdout), ("stderr", case.stderr)):
        if text:
            yield f"{name}:"
            yield from (f"  {line}" for line in tail_lines(text, _MAX_OUTPUT_LINES))
