"""A report as JUnit XML, with one testcase per platform in each step, and per CPU and command in a run.

The format is what the Ant and Jenkins schemas share (github.com/jenkinsci/xunit-plugin,
junit-10.xsd). Whatever an image prints, the document is well-formed XML 1.0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import Case, Problem, Step, describe_problem, list_steps, report_name
from buildkit_tasks.report.text import escape_match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["to_junit"]

# What is outside the production Char of XML 1.0, section 2.2: no escape may stand for it either.
_ILLEGAL_CHARS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

# A carriage return is read back as a line end unless it is written as a reference (section 2.11),
# and in an attribute so are tab and newline as spaces (section 3.3.3).
_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_ATTRIBUTE_ESCAPES = {**_TEXT_ESCAPES, **str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})}


def to_junit(report: Report) -> str:
    """Write a report as a JUnit XML document; times are in seconds."""
    steps = list_steps(report)
    cases = [case for step in steps for case in step.cases]
    totals = _format_attributes(name=report_name(report)) + _count_attributes(
        cases, sum(step.seconds for step in steps)
    )
    lines = ['<?xml version="1.0" encoding="utf-8"?>', f"<testsuites{totals}>"]
    for step in steps:
        lines += _render_suite(step)
    return "\n".join([*lines, "</testsuites>", ""])


def _render_suite(step: Step) -> Iterator[str]:
    yield f"  <testsuite{_format_attributes(name=step.name)}{_count_attributes(step.cases, step.seconds)}>"
    for case in step.cases:
        yield from _render_case(step.name, case)
    if step.facts:
        facts = (f"<property{_format_attributes(name=name, value=value)}/>" for name, value in step.facts)
        yield f"    <properties>{''.join(facts)}</properties>"
    yield "  </testsuite>"


def _count_attributes(cases: Sequence[Case], seconds: float) -> str:
    errors = sum(_is_error(case) for case in cases)
    return _format_attributes(
        tests=str(len(cases)),
        failures=str(sum(bool(case.problems) for case in cases) - errors),
        errors=str(errors),
        skipped=str(sum(bool(case.skipped) for case in cases)),
        time=f"{seconds:.3f}",
    )


def _is_error(case: Case) -> bool:
    return any(problem.is_environment_error for problem in case.problems)


def _render_case(step: str, case: Case) -> Iterator[str]:
    attributes = _format_attributes(
        classname=f"buildkit_tasks.{step}",
        name=case.name or f"{step} as a whole",
        time=f"{case.seconds:.3f}",
    )
    yield f"    <testcase{attributes}>"
    if case.skipped:
        yield f"      <skipped{_format_attributes(message=case.skipped)}/>"
    if case.problems:
        yield _render_problems("error" if _is_error(case) else "failure", case.problems)
    for tag, text in (("system-out", _format_warnings(case) + case.stdout), ("system-err", case.stderr)):
        if text:
            yield f"      <{tag}>{_escape_text(text)}</{tag}>"
    yield "    </testcase>"


def _format_warnings(case: Case) -> str:
    """Write warnings as output: the format has no word for them, and what holds has passed."""
    entries = (f"warning: {warning.kind}: {describe_problem(warning)}\n\n" for warning in case.warnings)
    return "".join(entries)


def _render_problems(tag: str, problems: tuple[Problem, ...]) -> str:
    """Write one element, since readers take only the first; its text has every problem."""
    first = problems[0]
    body = "\n\n".join(f"{problem.kind}: {describe_problem(problem)}" for problem in problems)
    return (
        "      "
        f"<{tag}{_format_attributes(message=first.message, type=first.kind)}>{_escape_text(body)}</{tag}>"
    )


def _format_attributes(**values: str) -> str:
    return "".join(
        f' {name}="{_replace_illegal(value).translate(_ATTRIBUTE_ESCAPES)}"' for name, value in values.items()
    )


def _escape_text(text: str) -> str:
    return _replace_illegal(text).translate(_TEXT_ESCAPES)


def _replace_illegal(text: str) -> str:
    return _ILLEGAL_CHARS.sub(escape_match, text)
