"""The one sentence that closes a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import (
    LEFT_OUT,
    STEPS,
    Case,
    Step,
    image_steps,
    name_of,
    platforms_of,
    steps_of,
)
from buildkit_tasks.report.model import BuildResult, ImagesReport, MatrixReport, PushResult
from buildkit_tasks.report.text import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["closing_of", "counted", "warnings_in"]

_PART = 60  # characters of what tells one run of a platform from another
_SENTENCE = 200  # characters; the whole of what is cut here stands below the table or in a report file

_DONE = {"setup": "are ready", "build": "built", "verify": "verified", "run": "ran as expected"}


def closing_of(report: Report) -> str:
    """Say how many platforms hold, with how many warnings, which do not, and where it stopped.

    Of several images, how many of those.
    """
    if isinstance(report, ImagesReport):
        return _of_images(report)
    steps = steps_of(report)
    names = platforms_of(steps)
    holding = [name for name in names if all(case.held for case in _of(steps, name))]
    pushed = report.pushed if isinstance(report, BuildResult) else report
    if isinstance(pushed, PushResult):
        return _of_push(pushed, len(holding), len(names))
    matrix = isinstance(report, MatrixReport)
    done = "hold" if matrix else _DONE[name_of(report)]
    number = warnings_in(steps)
    warned = f", {'with ' if matrix else ''}{counted(number)}" if number else ""
    held = f"{len(holding)} of {len(names)} platforms {done}"
    if report.ok and holding == names:
        return f"{held}: built, verified and run{warned}." if matrix else f"{held}{warned}."
    return f"{held}{warned}.{_gaps(steps, names)}{_stop(steps)}"


def _of_push(report: PushResult, holding: int, platforms: int) -> str:
    """Say what was proved of what was pushed, and what names it now."""
    steps = steps_of(report)
    number = warnings_in(steps)
    warned = f", with {counted(number)}" if number else ""
    if not report.ok:
        gaps = _gaps(steps, platforms_of(steps))
        return f"{holding} of {platforms} platforms hold{warned}.{gaps} No tag was named."
    done = "verified, run and named" if report.verify or report.run else "named without proof"
    return f"{holding} of {platforms} platforms pushed{warned}: {done}."


def _of_images(report: ImagesReport) -> str:
    number = warnings_in(steps_of(report))
    warned = f", with {counted(number)}" if number else ""
    held = f"{sum(image.ok for image in report.images)} of {len(report.images)} images hold"
    if report.ok:
        return f"{held}: built, verified and run{warned}."
    others = [step for step in steps_of(report) if step.name in ("setup", "images")]
    told = [_gaps(others, platforms_of(others)) + _stop(others)]
    for image in report.images:
        steps = image_steps(image)
        gaps = _gaps(steps, platforms_of(steps)) + _stop(steps)
        told += [f" {image.name}:{gaps}"] if gaps else []
    return f"{held}{warned}.{''.join(told)}"


def counted(warnings: int) -> str:
    """Count warnings in words."""
    return f"{warnings} warning{'' if warnings == 1 else 's'}"


def warnings_in(steps: Iterable[Step]) -> int:
    """Give how many warnings there are, of all platforms together."""
    return sum(len(case.warnings) for step in steps for case in step.cases)


def _of(steps: Iterable[Step], platform: str) -> list[Case]:
    return [case for step in steps for case in step.cases if case.platform == platform]


def _gaps(steps: Sequence[Step], names: list[str]) -> str:
    """Say which platforms failed, where they first did, and which were left out of a step."""
    texts = [_first_gap(steps, name) for name in ["", *names]]
    found = ", ".join(text for text in texts if text)
    return f" FAILED: {found}." if found else ""


def _first_gap(steps: Sequence[Step], platform: str) -> str:
    """Where a platform first failed; failing that, what it was left out of."""
    mine = [
        (step, case)
        for step in steps
        for case in step.cases
        if case.platform == platform and step.name in STEPS
    ]
    failed = [(step.name, case) for step, case in mine if _fails(case)]
    if failed:
        first = failed[0][0]
        which = _which([case for step, case in mine if step.name == first])
        return f"{platform} ({first}{which})" if platform else first
    absent = [step.name for step, case in mine if not case.held and _was_reached(step)]
    return f"{platform} (left out of {absent[0]})" if absent else ""


def _which(cases: Sequence[Case]) -> str:
    """Of several cases of one platform: which of them failed, by what tells them apart."""
    failed = [case for case in cases if _fails(case)]
    if len(cases) == len(failed):
        return ""
    told = shortened(failed[0].label.removeprefix(failed[0].platform), _PART)
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"{told}{more}"


def _fails(case: Case) -> bool:
    return any(problem.kind != LEFT_OUT for problem in case.problems)


def _was_reached(step: Step) -> bool:
    return any(not case.skipped for case in step.cases)


def _stop(steps: Sequence[Step]) -> str:
    """Say where the line stopped, with the first line of its error; the rest stands below."""
    stops = [case.problems[0] for step in steps if step.name not in STEPS for case in step.cases]
    if not stops:
        return ""
    first = shortened(stops[0].message.partition("\n")[0], _SENTENCE)
    return f" Stopped {dict(stops[0].facts)['stopped']}: {first}"
