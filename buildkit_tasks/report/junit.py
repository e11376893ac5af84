"""A report as JUnit XML, with one testcase per platform in each step, and per CPU and command in a run.

The format is the common part of Ant's and Jenkins' schemas (github.com/jenkinsci/xunit-plugin,
junit-10.xsd). Whatever an image prints, the document is well-formed XML 1.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.printable import escape_unprintable, refer_to_colons
from buildkit_tasks.report.rows import Problem, Row, Step, describe_problem
from buildkit_tasks.report.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["to_junit"]

# Characters outside the production Char of XML 1.0, section 2.2: references to them are illegal too.

# A parser reads a carriage return as a newline unless it is a reference (section 2.11), and in
# an attribute tab and newline as spaces (section 3.3.3).
_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_ATTRIBUTE_ESCAPES = {**_TEXT_ESCAPES, **str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})}


def to_junit(report: Report) -> str:
    """Return a report as a JUnit XML document; times are in seconds."""
    summary = summarize(report)
    rows = [row for step in summary.steps for row in step.rows]
    counts = _count_attributes(rows, sum(step.seconds for step in summary.steps))
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f"<testsuites{_format_attributes(name=summary.name)}{counts}>",
        *(line for step in summary.steps for line in _render_suite(step)),
    ]
    return "\n".join([*lines, "</testsuites>", ""])


def _render_suite(step: Step) -> Iterator[str]:
    yield f"  <testsuite{_format_attributes(name=step.title)}{_count_attributes(step.rows, step.seconds)}>"
    for row in step.rows:
        yield from _render_case(step.title, row)
    if step.facts:
        facts = (f"<property{_format_attributes(name=name, value=value)}/>" for name, value in step.facts)
        yield f"    <properties>{''.join(facts)}</properties>"
    yield "  </testsuite>"


def _count_attributes(rows: Sequence[Row], seconds: float) -> str:
    errors = sum(_is_error(row) for row in rows)
    return _format_attributes(
        tests=str(len(rows)),
        failures=str(sum(bool(row.problems) for row in rows) - errors),
        errors=str(errors),
        skipped=str(sum(bool(row.skipped) for row in rows)),
        time=f"{seconds:.3f}",
    )


def _is_error(row: Row) -> bool:
    return any(problem.is_environment_error for problem in row.problems)


def _render_case(step: str, row: Row) -> Iterator[str]:
    attributes = _format_attributes(
        classname=f"buildkit_tasks.{step}",
        name=row.name or f"{step} as a whole",
        time=f"{row.run.seconds if row.run else 0:.3f}",
    )
    yield f"    <testcase{attributes}>"
    if row.skipped:
        yield f"      <skipped{_format_attributes(message=row.skipped)}/>"
    if row.problems:
        yield _render_problems("error" if _is_error(row) else "failure", row.problems)
    stdout = _format_warnings(row) + row.outputs.get("stdout", "")
    for tag, text in (("system-out", stdout), ("system-err", row.outputs.get("stderr"))):
        if text:
            yield f"      <{tag}>{_escape_text(text)}</{tag}>"
    yield "    </testcase>"


def _format_warnings(row: Row) -> str:
    """Return warnings as output: JUnit has no element for them, and the testcase has passed."""
    return "".join(f"warning: {warning.kind}: {describe_problem(warning)}\n\n" for warning in row.warnings)


def _render_problems(tag: str, problems: tuple[Problem, ...]) -> str:
    """Return one element, since readers use only the first; its text has every problem."""
    first = problems[0]
    attributes = _format_attributes(message=first.message, type=first.kind)
    body = "\n\n".join(map(_format_problem, problems))
    return f"      <{tag}{attributes}>{_escape_text(body)}</{tag}>"


def _format_problem(problem: Problem) -> str:
    hint = f"\ntry: {problem.hint}" if problem.hint else ""
    return f"{problem.kind}: {describe_problem(problem)}{hint}"


def _format_attributes(**values: str) -> str:
    return "".join(
        f' {name}="{escape_unprintable(value).translate(_ATTRIBUTE_ESCAPES)}"'
        for name, value in values.items()
    )


def _escape_text(text: str) -> str:
    return refer_to_colons(escape_unprintable(text).translate(_TEXT_ESCAPES))
