"""A report as an SVG picture, for a README or a page: no script, no font or other file fetched.

A picture has room for what a screen shows; where it leaves out more, it says so. Colours stand in
plain rules, which the dark ones come after: not every reader of SVG knows variables.
"""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import (
    Case,
    Problem,
    describe_problem,
    iter_failures,
    iter_warnings,
    limit_problems,
)
from buildkit_tasks.report.summary import Cell, Severity, SummaryTable, build_summary_table
from buildkit_tasks.report.text import escape_markup, escape_unprintable, tail_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["to_svg"]

# Pixels. Monospaced fonts are 0.55 to 0.61 of their size wide: 7.85 for 13 has room for each.
_CHARACTER_WIDTH = 7.85
_MARGIN = 24
_COLUMN_GAP = 26  # between columns
_ICON_WIDTH = 20  # a cell's sign and the space after it
_ROW_HEIGHT = 30
_LINE_HEIGHT = 20
_MIN_COLUMNS = 88  # characters: lines below the table are folded, and want some room

_MAX_PROBLEM_LINES = 60  # of one problem, once folded
_MAX_OUTPUT_LINES = 40  # of each stream of a failing run
_OMITTED_HINT = "a --report file of another kind has them all"

_CSS = """
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 13px; white-space: pre; fill: #1f2328; }
.name { font-size: 18px; font-weight: 700; }
.strong { font-weight: 600; }
.end { text-anchor: end; }
.card { fill: #ffffff; stroke: #d1d9e0; }
.rule { stroke: #d1d9e0; }
.quiet { fill: #59636e; }
.good { fill: #1a7f37; }
.warning { fill: #9a6700; }
.bad { fill: #cf222e; }
.sign { fill: none; stroke: #ffffff; stroke-width: 1.7; stroke-linecap: round; stroke-linejoin: round; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .card { fill: #0d1117; stroke: #3d444d; }
  .rule { stroke: #3d444d; }
  .quiet { fill: #9198a1; }
  .good { fill: #3fb950; }
  .warning { fill: #d29922; }
  .bad { fill: #f85149; }
  .sign { stroke: #0d1117; }
}
"""

# Drawn, not written: a tick is not in every font, and colour alone is not seen by everyone.
_ICON_PATHS = {
    Severity.GOOD: "M-3 .2l2 2.2 4-4.6",
    Severity.WARNING: "M0-3.4v3.6M0 3.2v.1",
    Severity.BAD: "M-2.4-2.4l4.8 4.8M2.4-2.4l-4.8 4.8",
}


_HEADING_LABELS = {Severity.WARNING: "WARNING", Severity.BAD: "FAILED"}


def to_svg(report: Report) -> str:
    """Write a report as a picture of its table, its notes, and the first of what failed."""
    table = build_summary_table(report)
    widths = _column_widths(table)
    columns = max(_MIN_COLUMNS, math.ceil((sum(widths) + _COLUMN_GAP * (len(widths) - 1)) / _CHARACTER_WIDTH))
    canvas = _Canvas(columns)
    _draw_table(canvas, table, widths)
    canvas.move_down(8)
    for note in table.notes:
        canvas.draw_lines(_wrap_text(note, columns), "quiet")
    canvas.move_down(6)
    canvas.draw_lines(_wrap_text(table.summary_line, columns), f"strong {table.severity}")
    for step, case in iter_failures(report):
        _draw_problems(canvas, Severity.BAD, step, case, case.problems)
        _draw_output(canvas, case)
    for step, case in iter_warnings(report):
        _draw_problems(canvas, Severity.WARNING, step, case, case.warnings)
    return canvas.render_document(f"{table.name}: {table.verdict}", table.summary_line)


class _Canvas:
    """A card that grows downwards; ``columns`` is how many characters fit beside one another."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.width = round(columns * _CHARACTER_WIDTH) + 2 * _MARGIN
        self._y = float(_MARGIN)
        self._elements: list[str] = []

    def move_down(self, height: float) -> None:
        """Leave some room."""
        self._y += height

    def draw_text(self, x: float, text: str, css_class: str) -> None:
        """Write text whose middle is at this height."""
        class_attribute = f' class="{css_class}"' if css_class else ""
        self._elements.append(
            f'<text x="{x:g}" y="{self._y + 4.5:g}"{class_attribute}>{escape_markup(text)}</text>'
        )

    def draw_lines(self, lines: Iterable[str], css_class: str = "", indent: float = 0) -> None:
        """Write lines, one below the other."""
        for line in lines:
            self.move_down(_LINE_HEIGHT / 2)
            self.draw_text(_MARGIN + indent, line, css_class)
            self.move_down(_LINE_HEIGHT / 2)

    def draw_icon(self, x: float, severity: Severity) -> None:
        """Draw the sign of a tone."""
        transform = f'transform="translate({x + 7:g} {self._y:g})"'
        shape = f'<circle r="7" class="{severity}"/><path class="sign" d="{_ICON_PATHS[severity]}"/>'
        self._elements.append(f"<g {transform}>{shape}</g>")

    def draw_rule(self) -> None:
        """Draw a line across."""
        y = int(self._y) + 0.5  # on the middle of a pixel: else it is drawn as two pale ones
        coordinates = f'x1="{_MARGIN}" x2="{self.width - _MARGIN}" y1="{y}" y2="{y}"'
        self._elements.append(f'<line class="rule" {coordinates}/>')

    def render_document(self, title: str, description: str) -> str:
        """Give the whole picture."""
        width, height = self.width, round(self._y) + _MARGIN
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        header_lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" xml:space="preserve">',
            f"<title>{escape_markup(title)}</title>",
            f"<desc>{escape_markup(description)}</desc>",
            f"<style>{_CSS}</style>",
            f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        ]
        return "\n".join([*header_lines, *self._elements, "</svg>", ""])


def _draw_table(canvas: _Canvas, table: SummaryTable, widths: Sequence[float]) -> None:
    canvas.move_down(8)
    canvas.draw_icon(_MARGIN, table.severity)
    canvas.draw_text(_MARGIN + 24, table.name, "name")
    canvas.draw_text(canvas.width - _MARGIN, table.verdict, f"end strong {table.severity}")
    canvas.move_down(20 + _ROW_HEIGHT / 2)
    _draw_row(canvas, table.columns, tuple(Cell(name) for name in table.columns), widths, "quiet")
    for row in table.rows:
        canvas.move_down(_ROW_HEIGHT / 2)
        canvas.draw_rule()
        canvas.move_down(_ROW_HEIGHT / 2)
        _draw_row(canvas, table.columns, row, widths, "")
    canvas.move_down(_ROW_HEIGHT / 2)
    canvas.draw_rule()


def _draw_row(
    canvas: _Canvas, columns: Sequence[str], row: Sequence[Cell], widths: Sequence[float], css_class: str
) -> None:
    x = float(_MARGIN)
    for column, cell, width in zip(columns, row, widths, strict=True):
        if column == "Seconds":
            canvas.draw_text(canvas.width - _MARGIN, cell.text, f"end {css_class}".strip())
        elif cell.severity is Severity.PLAIN:
            canvas.draw_text(x, cell.text, css_class or ("strong" if column == "Platform" else ""))
        else:
            canvas.draw_icon(x, cell.severity)
            canvas.draw_text(x + _ICON_WIDTH, cell.text, cell.severity)
        x += width + _COLUMN_GAP


def _column_widths(table: SummaryTable) -> list[float]:
    """Give each column's width in pixels."""
    return [
        max(_display_width(column) * _CHARACTER_WIDTH, *(_cell_width(row[index]) for row in table.rows), 0)
        for index, column in enumerate(table.columns)
    ]


def _cell_width(cell: Cell) -> float:
    return _display_width(cell.text) * _CHARACTER_WIDTH + (
        0 if cell.severity is Severity.PLAIN else _ICON_WIDTH
    )


def _draw_problems(
    canvas: _Canvas, severity: Severity, step: str, case: Case, problems: tuple[Problem, ...]
) -> None:
    listed, omitted = limit_problems(problems)
    previous_heading = ""
    for problem in listed:
        heading = " ".join(
            part for part in (_HEADING_LABELS[severity], step, case.name, problem.kind) if part
        )
        if (
            severity is Severity.BAD or heading != previous_heading
        ):  # warnings of one kind stand under one head
            canvas.move_down(14)
            canvas.draw_lines(_wrap_text(heading, canvas.columns), f"strong {severity}")
        previous_heading = heading
        text = describe_problem(problem) if severity is Severity.BAD else problem.message
        canvas.draw_lines(_first_lines(text, canvas.columns - 2), indent=16)
    if omitted:
        canvas.draw_lines([f"({omitted} more: {_OMITTED_HINT})"], "quiet", indent=16)


def _draw_output(canvas: _Canvas, case: Case) -> None:
    for name, text in (("stdout", case.stdout), ("stderr", case.stderr)):
        if text:
            canvas.draw_lines([f"{name}:"], "quiet", indent=16)
            last_output = "\n".join(tail_lines(text, _MAX_OUTPUT_LINES))
            canvas.draw_lines(_first_lines(last_output, canvas.columns - 4), indent=32)


def _first_lines(text: str, columns: int) -> list[str]:
    lines = list(_wrap_text(text, columns))
    omitted = len(lines) - _MAX_PROBLEM_LINES
    if omitted <= 0:
        return lines
    return [*lines[:_MAX_PROBLEM_LINES], f"({omitted} more lines: {_OMITTED_HINT})"]


def _wrap_text(text: str, columns: int) -> Iterator[str]:
    """Break text into lines of at most this many columns, after a space where there is one."""
    for line in escape_unprintable(text).expandtabs(4).split("\n"):
        start = 0
        while (end := _find_line_end(line, start, columns)) < len(line):
            space = line.rfind(" ", start + columns // 2, end)
            end = space + 1 if space >= 0 else end
            yield line[start:end]
            start = end
        yield line[start:]


def _find_line_end(line: str, start: int, columns: int) -> int:
    """Give the place in a line up to which it fits."""
    remaining = columns
    for index in range(start, len(line)):
        remaining -= _display_width(line[index])
        if remaining < 0:
            return index
    return len(line)


def _display_width(text: str) -> int:
    """Give how many columns text is wide: an ideograph or an emoji is two (Unicode UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
