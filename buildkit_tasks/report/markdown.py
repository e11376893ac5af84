"""A report as GitHub-flavoured Markdown; no text in it adds markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.printable import escape_message
from buildkit_tasks.report.rows import Problem, Row, describe_problem
from buildkit_tasks.report.summary import Summary, summarize
from buildkit_tasks.report.text import to_one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.report.model import Report

__all__ = ["to_markdown", "to_short_markdown"]

# Written as character references, these begin no cell, span, tag, link or mention: Markdown reads a
# reference as text (CommonMark 2.5), and divides a table into cells before it reads references.
_SPECIAL_CHARS = re.compile(r"[\\`*_{}\[\]<>&|~@#!$]|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)
_BACKTICKS = re.compile("`+")


def to_markdown(report: Report) -> str:
    """Return a report as a table, a summary line, and every failure and warning in full."""
    summary = summarize(report)
    failures = [
        _render_section(step, row, [*_format_problems(row.problems), *_format_outputs(row)])
        for step, row in summary.failures
    ]
    warnings = [_render_section(step, row, _format_problems(row.warnings)) for step, row in summary.warnings]
    parts = [_render_summary(summary)]
    parts += ["### What failed\n", *failures] if failures else []
    parts += ["### Warnings\n", *warnings] if warnings else []
    return "\n".join(parts)


def to_short_markdown(report: Report) -> str:
    """Return only the table, the notes and the summary line, whose lengths are bounded."""
    return _render_summary(summarize(report))


def _render_summary(summary: Summary) -> str:
    parts = [
        f"## {summary.title}",
        "\n".join(_render_table(summary)),
        "\n".join(f"- {_escape_markdown(note)}" for note in summary.notes),
        f"**{_escape_markdown(summary.summary_line)}**",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_table(summary: Summary) -> Iterator[str]:
    yield _render_line(summary.columns)
    yield _render_line("---:" if name == "Seconds" else "---" for name in summary.columns)
    for line in summary.lines:
        yield _render_line(_escape_markdown(cell.text) for cell in line)


def _render_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_markdown(text: str) -> str:
    """Return text in one line, with a reference for each character that could be markup."""
    return _SPECIAL_CHARS.sub(lambda match: f"&#{ord(match[0])};", to_one_line(text))


def _render_section(step: str, row: Row, texts: Iterable[str]) -> str:
    heading = _escape_markdown(f"{step} {row.name}".strip())
    return f"**{heading}**\n\n{_fence_text(chr(10).join(texts))}\n"


def _format_problems(problems: Iterable[Problem]) -> Iterator[str]:
    return (f"{problem.kind}: {describe_problem(problem)}" for problem in problems)


def _format_outputs(row: Row) -> Iterator[str]:
    return (f"{name}:\n{text}" for name, text in row.outputs.items())


def _fence_text(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in the text (CommonMark 4.5)."""
    safe_text = escape_message(text)
    longest_run = max(map(len, _BACKTICKS.findall(safe_text)), default=0)
    fence = "`" * max(3, longest_run + 1)
    return f"{fence}text\n{safe_text}\n{fence}"
