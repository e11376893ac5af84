"""A report as JUnit XML, with one testcase per platform in each step, and per CPU and command in a run.

The format is what the Ant and Jenkins schemas share (github.com/jenkinsci/xunit-plugin,
junit-10.xsd). Whatever an image prints, the document is well-formed XML 1.0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import Case, Problem, Step, describe, name_of, steps_of
from buildkit_tasks.report.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["to_junit"]

# What is outside the production Char of XML 1.0, section 2.2: no escape may stand for it either.
_ILLEGAL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

# A carriage return is read back as a line end unless it is written as a reference (section 2.11),
# and in an attribute so are tab and newline as spaces (section 3.3.3).
_IN_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_IN_ATTRIBUTE = {**_IN_TEXT, **str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})}


def to_junit(report: Report) -> str:
    """Write a report as a JUnit XML document; times are in seconds."""
    steps = steps_of(report)
    cases = [case for step in steps for case in step.cases]
    totals = _attributes(name=name_of(report)) + _counts(cases, sum(step.seconds for step in steps))
    lines = ['<?xml version="1.0" encoding="utf-8"?>', f"<testsuites{totals}>"]
    for step in steps:
        lines += _suite(step)
    return "\n".join([*lines, "</testsuites>", ""])


def _suite(step: Step) -> Iterator[str]:
    yield f"  <testsuite{_attributes(name=step.name)}{_counts(step.cases, step.seconds)}>"
    for case in step.cases:
        yield from _case(step.name, case)
    if step.facts:
        facts = (f"<property{_attributes(name=name, value=value)}/>" for name, value in step.facts)
        yield f"    <properties>{''.join(facts)}</properties>"
    yield "  </testsuite>"


def _counts(cases: Sequence[Case], seconds: float) -> str:
    errors = sum(_is_error(case) for case in cases)
    return _attributes(
        tests=str(len(cases)),
        failures=str(sum(bool(case.problems) for case in cases) - errors),
        errors=str(errors),
        skipped=str(sum(bool(case.skipped) for case in cases)),
        time=f"{seconds:.3f}",
    )


def _is_error(case: Case) -> bool:
    return any(problem.environment for problem in case.problems)


def _case(step: str, case: Case) -> Iterator[str]:
    named = _attributes(
        classname=f"buildkit_tasks.{step}",
        name=case.name or f"{step} as a whole",
        time=f"{case.seconds:.3f}",
    )
    yield f"    <testcase{named}>"
    if case.skipped:
        yield f"      <skipped{_attributes(message=case.skipped)}/>"
    if case.problems:
        yield _problems("error" if _is_error(case) else "failure", case.problems)
    for tag, text in (("system-out", _warnings(case) + case.stdout), ("system-err", case.stderr)):
        if text:
            yield f"      <{tag}>{_text(text)}</{tag}>"
    yield "    </testcase>"


def _warnings(case: Case) -> str:
    """Write warnings as output: the format has no word for them, and what holds has passed."""
    told = (f"warning: {warning.kind}: {describe(warning)}\n\n" for warning in case.warnings)
    return "".join(told)


def _problems(tag: str, problems: tuple[Problem, ...]) -> str:
    """Write one element, since readers take only the first; its text has every problem."""
    first = problems[0]
    body = "\n\n".join(f"{problem.kind}: {describe(problem)}" for problem in problems)
    return f"      <{tag}{_attributes(message=first.message, type=first.kind)}>{_text(body)}</{tag}>"


def _attributes(**values: str) -> str:
    return "".join(f' {name}="{_legal(value).translate(_IN_ATTRIBUTE)}"' for name, value in values.items())


def _text(text: str) -> str:
    return _legal(text).translate(_IN_TEXT)


def _legal(text: str) -> str:
    return _ILLEGAL.sub(visible, text)
