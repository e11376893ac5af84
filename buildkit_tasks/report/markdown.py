"""A report as GitHub-flavoured Markdown that no text in it can break out of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import Case, Problem, describe, failing, warned
from buildkit_tasks.report.summary import Table, table_of
from buildkit_tasks.report.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.report.model import Report

__all__ = ["to_markdown", "to_short_markdown"]

# As references no character begins a cell, a span, a tag, a link or a mention: Markdown reads
# them as text (CommonMark 2.5), and a table's cells are divided before they are read.
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>&|~@#!$]|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)
_BACKTICKS = re.compile("`+")


def to_markdown(report: Report) -> str:
    """Write a report as a table, a closing line, and every failure and warning in full."""
    failed = [_section(step, case, [*_said(case.problems), *_output(case)]) for step, case in failing(report)]
    worth_a_look = [_section(step, case, _said(case.warnings)) for step, case in warned(report)]
    parts = [to_short_markdown(report)]
    parts += ["### What failed\n", *failed] if failed else []
    parts += ["### Warnings\n", *worth_a_look] if worth_a_look else []
    return "\n".join(parts)


def to_short_markdown(report: Report) -> str:
    """Write only the table, the notes and the closing line, whose lengths are bounded."""
    table = table_of(report)
    notes = [f"- {_escaped(note)}" for note in table.notes]
    heading = f"## {table.name}: {table.verdict}"
    parts = [heading, "\n".join(_table(table)), "\n".join(notes), f"**{_escaped(table.closing)}**"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> Iterator[str]:
    yield _row(table.columns)
    yield _row(tuple("---:" if name == "Seconds" else "---" for name in table.columns))
    for row in table.rows:
        yield _row(tuple(_escaped(cell.text) for cell in row))


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Write text in one line, with a character reference for each that Markdown could obey."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", one_line(text))


def _section(step: str, case: Case, said: Iterable[str]) -> str:
    head = _escaped(f"{step} {case.name}".strip())
    return f"**{head}**\n\n{_fenced(chr(10).join(said))}\n"


def _said(problems: Iterable[Problem]) -> Iterator[str]:
    return (f"{problem.kind}: {describe(problem)}" for problem in problems)


def _output(case: Case) -> Iterator[str]:
    streams = (("stdout", case.stdout), ("stderr", case.stderr))
    return (f"{name}:\n{text}" for name, text in streams if text)


def _fenced(text: str) -> str:
    """Put text into a code block whose fence is longer than any in the text (CommonMark 4.5)."""
    shown = printable(text)
    longest = max((len(ticks) for ticks in _BACKTICKS.findall(shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"
