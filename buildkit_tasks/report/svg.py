"""A report as an SVG picture, for a README or a page: no script, no font or other file fetched.

A picture has room for what a screen shows; where it leaves out more, it says so. Colours stand in
plain rules, which the dark ones come after: not every reader of SVG knows variables.
"""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import Case, Problem, describe, failing, shown, warned
from buildkit_tasks.report.summary import Cell, Table, Tone, table_of
from buildkit_tasks.report.text import markup, printable, tail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["to_svg"]

# Pixels. Monospaced fonts are 0.55 to 0.61 of their size wide: 7.85 for 13 has room for each.
_CHARACTER = 7.85
_MARGIN = 24
_GAP = 26  # between columns
_SIGN = 20  # a cell's sign and the space after it
_ROW = 30
_LINE = 20
_NARROWEST = 88  # characters: lines below the table are folded, and want some room

_PROBLEM_LINES = 60  # of one problem, once folded
_OUTPUT_LINES = 40  # of each stream of a failing run
_ELSEWHERE = "a --report file of another kind has them all"

_STYLE = """
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
_SIGNS = {
    Tone.GOOD: "M-3 .2l2 2.2 4-4.6",
    Tone.WARNING: "M0-3.4v3.6M0 3.2v.1",
    Tone.BAD: "M-2.4-2.4l4.8 4.8M2.4-2.4l-4.8 4.8",
}


_WORDS = {Tone.WARNING: "WARNING", Tone.BAD: "FAILED"}


def to_svg(report: Report) -> str:
    """Write a report as a picture of its table, its notes, and the first of what failed."""
    table = table_of(report)
    widths = _widths(table)
    columns = max(_NARROWEST, math.ceil((sum(widths) + _GAP * (len(widths) - 1)) / _CHARACTER))
    canvas = _Canvas(columns)
    _draw_table(canvas, table, widths)
    canvas.skip(8)
    for note in table.notes:
        canvas.lines(_folded(note, columns), "quiet")
    canvas.skip(6)
    canvas.lines(_folded(table.closing, columns), f"strong {table.tone}")
    for step, case in failing(report):
        _draw_problems(canvas, Tone.BAD, step, case, case.problems)
        _draw_output(canvas, case)
    for step, case in warned(report):
        _draw_problems(canvas, Tone.WARNING, step, case, case.warnings)
    return canvas.document(f"{table.name}: {table.verdict}", table.closing)


class _Canvas:
    """A card that grows downwards; ``columns`` is how many characters fit beside one another."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.width = round(columns * _CHARACTER) + 2 * _MARGIN
        self._y = float(_MARGIN)
        self._elements: list[str] = []

    def skip(self, height: float) -> None:
        """Leave some room."""
        self._y += height

    def text(self, x: float, text: str, kind: str) -> None:
        """Write text whose middle is at this height."""
        named = f' class="{kind}"' if kind else ""
        self._elements.append(f'<text x="{x:g}" y="{self._y + 4.5:g}"{named}>{markup(text)}</text>')

    def lines(self, lines: Iterable[str], kind: str = "", indent: float = 0) -> None:
        """Write lines, one below the other."""
        for line in lines:
            self.skip(_LINE / 2)
            self.text(_MARGIN + indent, line, kind)
            self.skip(_LINE / 2)

    def sign(self, x: float, tone: Tone) -> None:
        """Draw the sign of a tone."""
        place = f'transform="translate({x + 7:g} {self._y:g})"'
        shape = f'<circle r="7" class="{tone}"/><path class="sign" d="{_SIGNS[tone]}"/>'
        self._elements.append(f"<g {place}>{shape}</g>")

    def rule(self) -> None:
        """Draw a line across."""
        y = int(self._y) + 0.5  # on the middle of a pixel: else it is drawn as two pale ones
        ends = f'x1="{_MARGIN}" x2="{self.width - _MARGIN}" y1="{y}" y2="{y}"'
        self._elements.append(f'<line class="rule" {ends}/>')

    def document(self, title: str, description: str) -> str:
        """Give the whole picture."""
        width, height = self.width, round(self._y) + _MARGIN
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" xml:space="preserve">',
            f"<title>{markup(title)}</title>",
            f"<desc>{markup(description)}</desc>",
            f"<style>{_STYLE}</style>",
            f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        ]
        return "\n".join([*lines, *self._elements, "</svg>", ""])


def _draw_table(canvas: _Canvas, table: Table, widths: Sequence[float]) -> None:
    canvas.skip(8)
    canvas.sign(_MARGIN, table.tone)
    canvas.text(_MARGIN + 24, table.name, "name")
    canvas.text(canvas.width - _MARGIN, table.verdict, f"end strong {table.tone}")
    canvas.skip(20 + _ROW / 2)
    _draw_row(canvas, table.columns, tuple(Cell(name) for name in table.columns), widths, "quiet")
    for row in table.rows:
        canvas.skip(_ROW / 2)
        canvas.rule()
        canvas.skip(_ROW / 2)
        _draw_row(canvas, table.columns, row, widths, "")
    canvas.skip(_ROW / 2)
    canvas.rule()


def _draw_row(
    canvas: _Canvas, columns: Sequence[str], row: Sequence[Cell], widths: Sequence[float], kind: str
) -> None:
    x = float(_MARGIN)
    for name, cell, width in zip(columns, row, widths, strict=True):
        if name == "Seconds":
            canvas.text(canvas.width - _MARGIN, cell.text, f"end {kind}".strip())
        elif cell.tone is Tone.PLAIN:
            canvas.text(x, cell.text, kind or ("strong" if name == "Platform" else ""))
        else:
            canvas.sign(x, cell.tone)
            canvas.text(x + _SIGN, cell.text, cell.tone)
        x += width + _GAP


def _widths(table: Table) -> list[float]:
    """Give each column's width in pixels."""
    return [
        max(_columns(name) * _CHARACTER, *(_cell_width(row[at]) for row in table.rows), 0)
        for at, name in enumerate(table.columns)
    ]


def _cell_width(cell: Cell) -> float:
    return _columns(cell.text) * _CHARACTER + (0 if cell.tone is Tone.PLAIN else _SIGN)


def _draw_problems(canvas: _Canvas, tone: Tone, step: str, case: Case, problems: tuple[Problem, ...]) -> None:
    some, left_out = shown(problems)
    before = ""
    for problem in some:
        head = " ".join(part for part in (_WORDS[tone], step, case.name, problem.kind) if part)
        if tone is Tone.BAD or head != before:  # warnings of one kind stand under one head
            canvas.skip(14)
            canvas.lines(_folded(head, canvas.columns), f"strong {tone}")
        before = head
        text = describe(problem) if tone is Tone.BAD else problem.message
        canvas.lines(_beginning(text, canvas.columns - 2), indent=16)
    if left_out:
        canvas.lines([f"({left_out} more: {_ELSEWHERE})"], "quiet", indent=16)


def _draw_output(canvas: _Canvas, case: Case) -> None:
    for name, text in (("stdout", case.stdout), ("stderr", case.stderr)):
        if text:
            canvas.lines([f"{name}:"], "quiet", indent=16)
            last = "\n".join(tail(text, _OUTPUT_LINES))
            canvas.lines(_beginning(last, canvas.columns - 4), indent=32)


def _beginning(text: str, columns: int) -> list[str]:
    lines = list(_folded(text, columns))
    left_out = len(lines) - _PROBLEM_LINES
    if left_out <= 0:
        return lines
    return [*lines[:_PROBLEM_LINES], f"({left_out} more lines: {_ELSEWHERE})"]


def _folded(text: str, columns: int) -> Iterator[str]:
    """Break text into lines of at most this many columns, after a space where there is one."""
    for line in printable(text).expandtabs(4).split("\n"):
        start = 0
        while (end := _end(line, start, columns)) < len(line):
            space = line.rfind(" ", start + columns // 2, end)
            end = space + 1 if space >= 0 else end
            yield line[start:end]
            start = end
        yield line[start:]


def _end(line: str, start: int, columns: int) -> int:
    """Give the place in a line up to which it fits."""
    left = columns
    for at in range(start, len(line)):
        left -= _columns(line[at])
        if left < 0:
            return at
    return len(line)


def _columns(text: str) -> int:
    """Give how many columns text is wide: an ideograph or an emoji is two (Unicode UAX #11)."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
