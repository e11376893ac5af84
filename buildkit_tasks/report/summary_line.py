"""The sentence that ends a report: how many platforms passed, and which failed where."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from buildkit_tasks.report.model import BuildResult, ImagesReport, MatrixReport, PushResult, report_name
from buildkit_tasks.report.rows import Row, Step, list_platforms
from buildkit_tasks.report.steps import LEFT_OUT, STEPS, STOPPED
from buildkit_tasks.report.text import pluralise, truncate_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["count_warnings", "format_summary_line"]

_MAX_LABEL_WIDTH = 60  # characters of what distinguishes a run from the others of its platform
_MAX_ERROR_WIDTH = 200  # characters; the full error is below the table or in a report file

_STEP_VERBS = {"setup": "ready", "build": "built", "verify": "verified", "run": "ran as expected"}
_STEP_PARTICIPLES = {"build": "built", "verify": "verified", "run": "run", "push": "tagged"}


def format_summary_line(report: Report, steps: Sequence[Step]) -> str:
    """Say how many platforms or images passed, with how many warnings, what failed, and where it stopped."""
    count = _count_passed(report, steps)
    warning_count = count_warnings(steps)
    warnings = pluralise(warning_count, "warning", "warnings")
    with_warnings = f", with {warnings}" if warning_count else ""
    failures = _join_sentences(_describe_failures(steps))
    match report:
        case BuildResult(pushed=PushResult() as push):
            return format_summary_line(push, steps)
        case PushResult():
            if not report.ok:
                return _join_sentences([f"{count} passed{with_warnings}.{failures}", " No tag was set."])
            is_verified = report.verify or report.run
            verbs = "verified, run and tagged" if is_verified else "tagged without verification"
            return f"{count} pushed{with_warnings}: {verbs}."
        case MatrixReport() | ImagesReport():
            if not report.ok:
                return f"{count} passed{with_warnings}.{failures}"
            return f"{count} passed: {_describe_steps(report)}{with_warnings}."
        case _:
            verb = _STEP_VERBS[report_name(report)]
            return f"{count} {verb}{f', {warnings}' if warning_count else ''}.{failures}"


def _describe_steps(report: MatrixReport | ImagesReport) -> str:
    """Return what was done, such as ``built, verified and run``."""
    images = report.images if isinstance(report, ImagesReport) else ()
    steps = ("push",) if any(each.tags for each in images) else ()
    if images and images[0].push:
        steps = ("verify", "run", *steps) if images[0].push.verify else steps
    else:
        steps = (*(images[0].steps if images else STEPS[1:]), *steps)
    done = [_STEP_PARTICIPLES[step] for step in steps]
    return " and ".join(filter(None, [", ".join(done[:-1]), done[-1]]))


def _count_passed(report: Report, steps: Sequence[Step]) -> str:
    if isinstance(report, ImagesReport):
        passed = sum(image.ok for image in report.images)
        return f"{passed} of {pluralise(len(report.images), 'image', 'images')}"
    platforms = list_platforms(steps)
    not_passed = {row.platform for step in steps for row in step.rows if not row.passed}
    passed = len(set(platforms) - not_passed)
    return f"{passed} of {pluralise(len(platforms), 'platform', 'platforms')}"


def count_warnings(steps: Iterable[Step]) -> int:
    """Return the number of warnings of all platforms together."""
    return sum(len(row.warnings) for step in steps for row in step.rows)


def _describe_failures(steps: Iterable[Step]) -> Iterator[str]:
    """Yield a sentence for what failed, and one for where the pipeline stopped, of each image."""
    for image, group in itertools.groupby(steps, key=lambda step: step.image):
        image_steps = [*group]
        failures = [_describe_failure(image_steps, name) for name in ["", *list_platforms(image_steps)]]
        text = ", ".join(filter(None, failures))
        sentences = f" FAILED: {text}." * bool(text) + _describe_stop(image_steps)
        yield f" {image}:{sentences}" if image and sentences else sentences


def _join_sentences(sentences: Iterable[str]) -> str:
    """Join sentences, each with its leading space; after an error there may be no full stop yet."""
    *others, last = [each for each in sentences if each] or [""]
    return "".join(each if each.endswith(".") else f"{each}." for each in others) + last


def _describe_failure(steps: Iterable[Step], platform: str) -> str:
    """Return the first step in which a platform failed, or else the first that left it out.

    ``platform`` is empty for the problems of a whole step.
    """
    entries = [(step, [row for row in step.rows if row.platform == platform]) for step in steps]
    for step, rows in entries:
        if step.name in STEPS and any(map(_has_failed, rows)):
            return f"{platform} ({step.name}{_describe_failed_runs(rows)})" if platform else step.name
    for step, rows in entries:
        is_reached = any(not row.skipped for row in step.rows)
        if step.name in STEPS and is_reached and not all(row.passed for row in rows):
            return f"{platform} (left out of {step.name})"
    return ""


def _describe_failed_runs(rows: Sequence[Row]) -> str:
    """Return which of several runs of a platform failed, by what distinguishes them."""
    failed = [row for row in rows if _has_failed(row)]
    if len(failed) == len(rows):
        return ""
    label = truncate_line(failed[0].label.removeprefix(failed[0].platform), _MAX_LABEL_WIDTH)
    return f"{label} and {len(failed) - 1} more" if len(failed) > 1 else label


def _has_failed(row: Row) -> bool:
    return any(problem.kind != LEFT_OUT for problem in row.problems)


def _describe_stop(steps: Iterable[Step]) -> str:
    """Return where the pipeline stopped, with the first line of its error, which may say that itself."""
    for problem in (problem for step in steps for row in step.rows for problem in row.problems):
        if problem.kind == STOPPED:
            error = truncate_line(problem.message.partition("\n")[0], _MAX_ERROR_WIDTH)
            place = dict(problem.facts)["stopped"]  # "before the end of build"
            names_step = f"{place.rpartition(' ')[2]} failed: " in error
            return f" Stopped: {error}" if names_step else f" Stopped {place}: {error}"
    return ""
