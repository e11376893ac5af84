"""The one sentence that closes a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.report.cases import (
    LEFT_OUT,
    STEPS,
    Case,
    Step,
    list_image_steps,
    list_platforms,
    list_steps,
    report_name,
)
from buildkit_tasks.report.model import BuildResult, ImagesReport, MatrixReport, PushResult
from buildkit_tasks.report.text import truncate_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.report.model import Report

__all__ = ["count_warnings", "format_summary_line", "format_warning_count"]

_MAX_LABEL_WIDTH = 60  # characters of what tells one run of a platform from another
_MAX_ERROR_WIDTH = 200  # characters; the whole of what is cut here stands below the table or in a report file

_STEP_VERBS = {"setup": "are ready", "build": "built", "verify": "verified", "run": "ran as expected"}


def format_summary_line(report: Report) -> str:
    """Say how many platforms hold, with how many warnings, which do not, and where it stopped.

    Of several images, how many of those.
    """
    if isinstance(report, ImagesReport):
        return _summarise_images(report)
    steps = list_steps(report)
    platforms = list_platforms(steps)
    passing = [
        platform for platform in platforms if all(case.passed for case in _platform_cases(steps, platform))
    ]
    push_result = report.pushed if isinstance(report, BuildResult) else report
    if isinstance(push_result, PushResult):
        return _summarise_push(push_result, len(passing), len(platforms))
    is_matrix = isinstance(report, MatrixReport)
    verb = "hold" if is_matrix else _STEP_VERBS[report_name(report)]
    warning_count = count_warnings(steps)
    warning_text = (
        f", {'with ' if is_matrix else ''}{format_warning_count(warning_count)}" if warning_count else ""
    )
    result_text = f"{len(passing)} of {len(platforms)} platforms {verb}"
    if report.ok and passing == platforms:
        return (
            f"{result_text}: built, verified and run{warning_text}."
            if is_matrix
            else f"{result_text}{warning_text}."
        )
    return f"{result_text}{warning_text}.{_describe_failures(steps, platforms)}{_describe_stop(steps)}"


def _summarise_push(report: PushResult, passing: int, total: int) -> str:
    """Say what was proved of what was pushed, and what names it now."""
    steps = list_steps(report)
    warning_count = count_warnings(steps)
    warning_text = f", with {format_warning_count(warning_count)}" if warning_count else ""
    if not report.ok:
        failures = _describe_failures(steps, list_platforms(steps))
        return f"{passing} of {total} platforms hold{warning_text}.{failures} No tag was named."
    verb = "verified, run and named" if report.verify or report.run else "named without proof"
    return f"{passing} of {total} platforms pushed{warning_text}: {verb}."


def _summarise_images(report: ImagesReport) -> str:
    warning_count = count_warnings(list_steps(report))
    warning_text = f", with {format_warning_count(warning_count)}" if warning_count else ""
    result_text = f"{sum(image.ok for image in report.images)} of {len(report.images)} images hold"
    if report.ok:
        return f"{result_text}: built, verified and run{warning_text}."
    shared_steps = [step for step in list_steps(report) if step.name in ("setup", "images")]
    parts = [_describe_failures(shared_steps, list_platforms(shared_steps)) + _describe_stop(shared_steps)]
    for image in report.images:
        steps = list_image_steps(image)
        failures = _describe_failures(steps, list_platforms(steps)) + _describe_stop(steps)
        parts += [f" {image.name}:{failures}"] if failures else []
    return f"{result_text}{warning_text}.{''.join(parts)}"


def format_warning_count(count: int) -> str:
    """Count warnings in words."""
    return f"{count} warning{'' if count == 1 else 's'}"


def count_warnings(steps: Iterable[Step]) -> int:
    """Give how many warnings there are, of all platforms together."""
    return sum(len(case.warnings) for step in steps for case in step.cases)


def _platform_cases(steps: Iterable[Step], platform: str) -> list[Case]:
    return [case for step in steps for case in step.cases if case.platform == platform]


def _describe_failures(steps: Sequence[Step], platforms: list[str]) -> str:
    """Say which platforms failed, where they first did, and which were left out of a step."""
    texts = [_describe_first_failure(steps, platform) for platform in ["", *platforms]]
    failures = ", ".join(text for text in texts if text)
    return f" FAILED: {failures}." if failures else ""


def _describe_first_failure(steps: Sequence[Step], platform: str) -> str:
    """Where a platform first failed; failing that, what it was left out of."""
    reached = [
        (step, case)
        for step in steps
        for case in step.cases
        if case.platform == platform and step.name in STEPS
    ]
    failed_steps = [(step.name, case) for step, case in reached if _has_failed(case)]
    if failed_steps:
        step_name = failed_steps[0][0]
        label = _failed_label([case for step, case in reached if step.name == step_name])
        return f"{platform} ({step_name}{label})" if platform else step_name
    skipped_steps = [step.name for step, case in reached if not case.passed and _is_reached(step)]
    return f"{platform} (left out of {skipped_steps[0]})" if skipped_steps else ""


def _failed_label(cases: Sequence[Case]) -> str:
    """Of several cases of one platform: which of them failed, by what tells them apart."""
    failed = [case for case in cases if _has_failed(case)]
    if len(cases) == len(failed):
        return ""
    label = truncate_line(failed[0].label.removeprefix(failed[0].platform), _MAX_LABEL_WIDTH)
    suffix = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"{label}{suffix}"


def _has_failed(case: Case) -> bool:
    return any(problem.kind != LEFT_OUT for problem in case.problems)


def _is_reached(step: Step) -> bool:
    return any(not case.skipped for case in step.cases)


def _describe_stop(steps: Sequence[Step]) -> str:
    """Say where the line stopped, with the first line of its error; the rest stands below."""
    problems = [case.problems[0] for step in steps if step.name not in STEPS for case in step.cases]
    if not problems:
        return ""
    first_line = truncate_line(problems[0].message.partition("\n")[0], _MAX_ERROR_WIDTH)
    return f" Stopped {dict(problems[0].facts)['stopped']}: {first_line}"
