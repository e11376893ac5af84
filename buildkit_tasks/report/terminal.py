"""A report as a table for people, drawn by rich, which is imported only to draw."""

from __future__ import annotations

import importlib
import io
import itertools
import os
from typing import TYPE_CHECKING, TextIO

from buildkit_tasks.report.cases import Case, Problem, describe, failing, shown, warned
from buildkit_tasks.report.summary import Cell, Table, Tone, table_of
from buildkit_tasks.report.text import one_line, printable, tail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from buildkit_tasks.report.model import Report

__all__ = ["bare_table", "has_unicode", "print_table", "render_ahead", "terminal", "text_of", "wants_colour"]

_UNBROKEN = 10_000  # columns: wider than any row, since every cell is cut to a length
_OUTPUT_LINES = 40  # of each stream of a failing run; report files have all of it
_MESSAGE_LINES = 10  # of one warning
_STYLES = {Tone.GOOD: "green", Tone.WARNING: "yellow", Tone.BAD: "bold red", Tone.PLAIN: ""}


def wants_colour(file: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether to colour: on a terminal, outside CI, and unless NO_COLOR (no-color.org) is set."""
    return file.isatty() and not environ.get("CI") and not environ.get("NO_COLOR")


def render_ahead() -> None:
    """Import what a table is drawn with, for a moment at which the processor waits."""
    for name in ("rich.console", "rich.table", "rich.text"):
        importlib.import_module(name)


def print_table(report: Report, file: TextIO, *, colour: bool, width: int | None = None) -> None:
    """Print a report's table, its notes and closing line, what failed, and what is worth a look.

    Of the problems of one platform the first ones are shown, and it is said how many are not.
    ``width`` is in columns. Without one a terminal's own is taken; in CI, or where the file is
    no terminal, rows are as wide as their words and never broken.
    """
    page = io.StringIO()
    console = _console(page, colour=colour, width=width or _width(file), force_terminal=colour)
    _draw(table_of(report), console, plain=not has_unicode(file))
    for step, case in failing(report):
        _explain(step, case, console)
    for step, case in warned(report):
        _warn(step, case, console)
    _write(page.getvalue(), file)


def _width(file: TextIO) -> int:
    """Give a terminal's width in columns, and no limit to a place that has none of its own."""
    if os.environ.get("CI") or not file.isatty():
        return _UNBROKEN
    try:
        return os.get_terminal_size(file.fileno()).columns or _UNBROKEN
    except OSError:
        return _UNBROKEN


def has_unicode(file: TextIO) -> bool:
    """Tell whether lines can be drawn there."""
    return (file.encoding or "utf-8").lower().startswith("utf")


def _write(text: str, file: TextIO) -> None:
    """Write text to a file whose encoding may not have every character of it."""
    encoding = file.encoding or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def terminal(file: TextIO, *, colour: bool) -> Console:
    """Give a terminal that can be drawn on, of its own size."""
    return _console(file, colour=colour, force_terminal=True)


def _console(file: TextIO, *, colour: bool, force_terminal: bool, width: int | None = None) -> Console:
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


def _draw(table: Table, console: Console, *, plain: bool) -> None:
    console.print(_rich_table(table, plain=plain))
    # Lines of text are not wrapped: a path or a command to copy stays in one piece.
    for note in table.notes:
        console.print(f"  {note}", soft_wrap=True)
    console.print(f"  {table.closing}", style=_STYLES[table.tone], soft_wrap=True)


def _rich_table(table: Table, *, plain: bool) -> RichTable:
    drawn = bare_table(plain=plain)
    for name in table.columns:
        drawn.add_column(
            name,
            no_wrap=name in ("Platform", "Seconds"),
            overflow="fold",
            justify="right" if name == "Seconds" else "left",
        )
    for row in table.rows:
        drawn.add_row(*(text_of(cell) for cell in row))
    return drawn


def bare_table(*, plain: bool) -> RichTable:
    """Give a table without columns and rows; ``plain`` if lines cannot be drawn."""
    from rich import box
    from rich.table import Table as RichTable

    # A drawn left edge: GitHub's runner obeys a line whose first word begins with `::`, even
    # after spaces, and a platform's name is whatever the image's index says.
    return RichTable(box=box.ASCII2 if plain else box.ROUNDED, header_style="")


def text_of(cell: Cell) -> Text:
    """Give a cell's words in their colour."""
    from rich.text import Text

    return Text(cell.text, style=_STYLES[cell.tone])


def _explain(step: str, case: Case, console: Console) -> None:
    problems, left_out = shown(case.problems)
    for problem in problems:
        _head(Tone.BAD, step, case, problem.kind, console)
        _lines(printable(describe(problem)).split("\n"), console)
    _more(left_out, f"problems of {step} {case.name}", console)
    _lines(_output(case), console)


def _warn(step: str, case: Case, console: Console) -> None:
    """Print what warnings say, those of one kind under one head; report files have their facts too."""
    warnings, left_out = shown(case.warnings)
    for kind, same in itertools.groupby(warnings, key=lambda warning: warning.kind):
        _head(Tone.WARNING, step, case, kind, console)
        for warning in same:
            _lines(_beginning(warning), console)
    _more(left_out, f"warnings of {step} {case.name}", console)


def _head(tone: Tone, step: str, case: Case, kind: str, console: Console) -> None:
    word = "FAILED" if tone is Tone.BAD else "WARNING"
    head = " ".join(part for part in (step, case.name, kind) if part)
    console.print(f"\n{word} {one_line(head)}", style=_STYLES[tone], soft_wrap=True)


def _lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(f"  | {line}", soft_wrap=True)


def _more(left_out: int, of_what: str, console: Console) -> None:
    if left_out:
        _lines([f"({left_out} more {one_line(of_what)}: a --report file has them all)"], console)


def _beginning(warning: Problem) -> list[str]:
    lines = printable(warning.message).split("\n")
    left_out = len(lines) - _MESSAGE_LINES
    if left_out <= 0:
        return lines
    return [*lines[:_MESSAGE_LINES], f"({left_out} more lines: a --report file has them all)"]


def _output(case: Case) -> Iterator[str]:
    for name, text in (("stdout", case.stdout), ("stderr", case.stderr)):
        if text:
            yield f"{name}:"
            yield from (f"  {line}" for line in tail(text, _OUTPUT_LINES))
