"""A report as an SVG image, for a README or a web page: no scripts, and no fonts or other files to fetch.

It shows as much as a terminal does, and how much it leaves out. Colours are in plain CSS rules, those
for dark pages after the others, because some SVG renderers do not support CSS variables.
"""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING

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
from buildkit_tasks.report.text import escape_markup, head_lines, tail_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["to_svg"]

# Pixels. Characters of monospaced fonts are 0.55 to 0.61 of the font size wide: 7.85 is enough at 13.
_CHARACTER_WIDTH = 7.85
_MARGIN = 24
_COLUMN_GAP = 26
_ICON_WIDTH = 20  # with the space after it
_ROW_HEIGHT = 30
_LINE_HEIGHT = 20
_MIN_COLUMNS = 88  # characters: lines below a narrow table are not wrapped at its width

_MAX_PROBLEM_LINES = 60  # of one problem, after wrapping
_MAX_OUTPUT_LINES = 40  # of each stream of a failed run
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

# Drawn as paths: a tick is not in every font, and not everyone sees colours.
_ICON_PATHS = {
    Severity.GOOD: "M-3 .2l2 2.2 4-4.6",
    Severity.WARNING: "M0-3.4v3.6M0 3.2v.1",
    Severity.BAD: "M-2.4-2.4l4.8 4.8M2.4-2.4l-4.8 4.8",
}
_HEADING_LABELS = {Severity.WARNING: "WARNING", Severity.BAD: "FAILED"}


def to_svg(report: Report) -> str:
    """Return an image of the table, its notes, and the first failures and warnings of each platform."""
    summary = summarize(report)
    widths = _column_widths(summary)
    columns = max(_MIN_COLUMNS, math.ceil((sum(widths) + _COLUMN_GAP * (len(widths) - 1)) / _CHARACTER_WIDTH))
    canvas = _Canvas(columns)
    _draw_table(canvas, summary, widths)
    canvas.move_down(8)
    for note in summary.notes:
        canvas.draw_lines(_wrap_text(note, columns), "quiet")
    canvas.move_down(6)
    canvas.draw_lines(_wrap_text(summary.summary_line, columns), f"strong {summary.severity}")
    for step, row in summary.failures:
        _draw_problems(canvas, Severity.BAD, step, row, row.problems)
        _draw_outputs(canvas, row)
    for step, row in summary.warnings:
        _draw_problems(canvas, Severity.WARNING, step, row, row.warnings)
    return canvas.render_document(summary.title, summary.summary_line)


class _Canvas:
    """A card that grows downwards; ``columns`` is its width in characters."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.width = round(columns * _CHARACTER_WIDTH) + 2 * _MARGIN
        self._y = float(_MARGIN)
        self._elements: list[str] = []

    def move_down(self, height: float) -> None:
        """Move the current height down by pixels."""
        self._y += height

    def draw_text(self, x: float, text: str, css_class: str) -> None:
        """Draw text that is vertically centred at the current height."""
        class_attribute = f' class="{css_class}"' if css_class else ""
        self._elements.append(
            f'<text x="{x:g}" y="{self._y + 4.5:g}"{class_attribute}>{escape_markup(text)}</text>'
        )

    def draw_lines(self, lines: Iterable[str], css_class: str = "", indent: float = 0) -> None:
        """Draw lines of text below each other."""
        for line in lines:
            self.move_down(_LINE_HEIGHT / 2)
            self.draw_text(_MARGIN + indent, line, css_class)
            self.move_down(_LINE_HEIGHT / 2)

    def draw_icon(self, x: float, severity: Severity) -> None:
        """Draw the icon of a severity at the current height."""
        transform = f'transform="translate({x + 7:g} {self._y:g})"'
        shape = f'<circle r="7" class="{severity}"/><path class="sign" d="{_ICON_PATHS[severity]}"/>'
        self._elements.append(f"<g {transform}>{shape}</g>")

    def draw_rule(self) -> None:
        """Draw a horizontal line at the current height."""
        y = int(self._y) + 0.5  # the middle of a pixel: otherwise it is drawn as two pale ones
        coordinates = f'x1="{_MARGIN}" x2="{self.width - _MARGIN}" y1="{y}" y2="{y}"'
        self._elements.append(f'<line class="rule" {coordinates}/>')

    def render_document(self, title: str, description: str) -> str:
        """Return the SVG document."""
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


def _draw_table(canvas: _Canvas, summary: Summary, widths: Sequence[float]) -> None:
    canvas.move_down(8)
    canvas.draw_icon(_MARGIN, summary.severity)
    canvas.draw_text(_MARGIN + 24, summary.name, "name")
    canvas.draw_text(canvas.width - _MARGIN, summary.verdict, f"end strong {summary.severity}")
    canvas.move_down(20 + _ROW_HEIGHT / 2)
    _draw_line(canvas, summary.columns, [Cell(name) for name in summary.columns], widths, "quiet")
    for line in summary.lines:
        canvas.move_down(_ROW_HEIGHT / 2)
        canvas.draw_rule()
        canvas.move_down(_ROW_HEIGHT / 2)
        _draw_line(canvas, summary.columns, line, widths, "")
    canvas.move_down(_ROW_HEIGHT / 2)
    canvas.draw_rule()


def _draw_line(
    canvas: _Canvas, columns: Sequence[str], line: Sequence[Cell], widths: Sequence[float], css_class: str
) -> None:
    x = float(_MARGIN)
    for column, cell, width in zip(columns, line, widths, strict=True):
        if column == "Seconds":
            canvas.draw_text(canvas.width - _MARGIN, cell.text, f"end {css_class}".strip())
        elif cell.severity is Severity.PLAIN:
            canvas.draw_text(x, cell.text, css_class or ("strong" if column == "Platform" else ""))
        else:
            canvas.draw_icon(x, cell.severity)
            canvas.draw_text(x + _ICON_WIDTH, cell.text, cell.severity)
        x += width + _COLUMN_GAP


def _column_widths(summary: Summary) -> list[float]:
    """Return each column's width in pixels."""
    headings = (Cell(name) for name in summary.columns)
    return [max(map(_cell_width, cells)) for cells in zip(headings, *summary.lines, strict=True)]


def _cell_width(cell: Cell) -> float:
    icon_width = 0 if cell.severity is Severity.PLAIN else _ICON_WIDTH
    return _display_width(cell.text) * _CHARACTER_WIDTH + icon_width


def _draw_problems(
    canvas: _Canvas, severity: Severity, step: str, row: Row, problems: tuple[Problem, ...]
) -> None:
    listed, omitted = limit_problems(problems)
    previous_heading = ""
    for problem in listed:
        heading = " ".join(
            filter(None, (_HEADING_LABELS[severity], step, row.name, describe_kind(problem.kind)))
        )
        # Warnings of one kind are listed under one heading.
        if severity is Severity.BAD or heading != previous_heading:
            canvas.move_down(14)
            canvas.draw_lines(_wrap_text(heading, canvas.columns), f"strong {severity}")
        previous_heading = heading
        text = describe_problem(problem) if severity is Severity.BAD else problem.message
        lines = [*_wrap_text(text, canvas.columns - 2)]
        canvas.draw_lines(head_lines(lines, _MAX_PROBLEM_LINES, _OMITTED_HINT), indent=16)
    if omitted:
        canvas.draw_lines([f"({omitted} more: {_OMITTED_HINT})"], "quiet", indent=16)


def _draw_outputs(canvas: _Canvas, row: Row) -> None:
    for name, text in row.outputs.items():
        canvas.draw_lines([f"{name}:"], "quiet", indent=16)
        last_lines = "\n".join(tail_lines(text, _MAX_OUTPUT_LINES))
        lines = [*_wrap_text(last_lines, canvas.columns - 4)]
        canvas.draw_lines(head_lines(lines, _MAX_PROBLEM_LINES, _OMITTED_HINT), indent=32)


def _wrap_text(text: str, columns: int) -> Iterator[str]:
    """Yield lines of at most ``columns`` columns, broken after a space in the second half if there is one."""
    for line in escape_unprintable(text).expandtabs(4).split("\n"):
        start = 0
        while (end := _find_line_end(line, start, columns)) < len(line):
            space = line.rfind(" ", start + columns // 2, end)
            end = space + 1 if space >= 0 else end
            yield line[start:end]
            start = end
        yield line[start:]


def _find_line_end(line: str, start: int, columns: int) -> int:
    """Return the index before which a line fits into that many columns."""
    remaining = columns
    for index in range(start, len(line)):
        remaining -= _display_width(line[index])
        if remaining < 0:
            return index
    return len(line)


def _display_width(text: str) -> int:
    """Return the width of text in columns: two for an ideograph or an emoji (Unicode UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
