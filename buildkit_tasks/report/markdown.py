"""A report as GitHub-flavoured Markdown that no text in it can break out of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import Case, Problem, describe_problem, iter_failures, iter_warnings
from buildkit_tasks.report.summary import SummaryTable, build_summary_table
from buildkit_tasks.report.text import escape_unprintable, to_one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.report.model import Report

__all__ = ["to_markdown", "to_short_markdown"]

# As references no character begins a cell, a span, a tag, a link or a mention: Markdown reads
# them as text (CommonMark 2.5), and a table's cells are divided before they are read.
_SPECIAL_CHARS = re.compile(r"[\\`*_{}\[\]<>&|~@#!$]|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)
_BACKTICKS = re.compile("`+")


def to_markdown(report: Report) -> str:
    """Write a report as a table, a closing line, and every failure and warning in full."""
    failure_sections = [
        _render_section(step, case, [*_format_problems(case.problems), *_format_output(case)])
        for step, case in iter_failures(report)
    ]
    warning_sections = [
        _render_section(step, case, _format_problems(case.warnings)) for step, case in iter_warnings(report)
    ]
    parts = [to_short_markdown(report)]
    parts += ["### What failed\n", *failure_sections] if failure_sections else []
    parts += ["### Warnings\n", *warning_sections] if warning_sections else []
    return "\n".join(parts)


def to_short_markdown(report: Report) -> str:
    """Write only the table, the notes and the closing line, whose lengths are bounded."""
    table = build_summary_table(report)
    notes = [f"- {_escape_markdown(note)}" for note in table.notes]
    heading = f"## {table.name}: {table.verdict}"
    parts = [
        heading,
        "\n".join(_render_table(table)),
        "\n".join(notes),
        f"**{_escape_markdown(table.summary_line)}**",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_table(table: SummaryTable) -> Iterator[str]:
    yield _render_row(table.columns)
    yield _render_row(tuple("---:" if name == "Seconds" else "---" for name in table.columns))
    for row in table.rows:
        yield _render_row(tuple(_escape_markdown(cell.text) for cell in row))


def _render_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_markdown(text: str) -> str:
    """Write text in one line, with a character reference for each that Markdown could obey."""
    return _SPECIAL_CHARS.sub(lambda match: f"&#{ord(match[0])};", to_one_line(text))


def _render_section(step: str, case: Case, texts: Iterable[str]) -> str:
    heading = _escape_markdown(f"{step} {case.name}".strip())
    return f"**{heading}**\n\n{_fence_text(chr(10).join(texts))}\n"


def _format_problems(problems: Iterable[Problem]) -> Iterator[str]:
    return (f"{problem.kind}: {describe_problem(problem)}" for problem in problems)


def _format_output(case: Case) -> Iterator[str]:
    streams = (("stdout", case.stdout), ("stderr", case.stderr))
    return (f"{name}:\n{text}" for name, text in streams if text)


def _fence_text(text: str) -> str:
    """Put text into a code block whose fence is longer than any in the text (CommonMark 4.5)."""
    safe_text = escape_unprintable(text)
    longest_run = max((len(ticks) for ticks in _BACKTICKS.findall(safe_text)), default=0)
    fence = "`" * max(3, longest_run + 1)
    return f"{fence}text\n{safe_text}\n{fence}"
