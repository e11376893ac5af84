"""The exit status that a report ends a task with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, DeadlineExceeded, Interrupted, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.report.model import ImagesReport, PushResult, RunReport, VerifyReport

__all__ = ["images_exit_code", "push_exit_code", "run_exit_code", "verify_exit_code"]


def images_exit_code(report: ImagesReport, errors: Iterable[BuildkitTasksError]) -> int:
    """130 if it was interrupted, 1 if any check, build or run failed; else the highest of the others."""
    exit_codes = {error.exit_code for error in errors}
    exit_codes |= {verify_exit_code(row.verify) for row in report.images if row.verify and not row.verify.ok}
    exit_codes |= {run_exit_code(row.run) for row in report.images if row.run and not row.run.ok}
    return next(
        (code for code in (Interrupted.exit_code, 1) if code in exit_codes), max(exit_codes, default=1)
    )


def push_exit_code(pushed: PushResult | None) -> int:
    """Return the exit code of a push whose verification or run failed."""
    if pushed is None or pushed.verify is None:
        return 1
    return verify_exit_code(pushed.verify) if pushed.run is None else run_exit_code(pushed.run)


def verify_exit_code(report: VerifyReport) -> int:
    """Return 124 if its time was over, 5 if no other check than a limit failed, else 1."""
    failed_checks = {check.name for row in report.platforms for check in row.checks if not check.ok}
    if "timeout" in failed_checks:
        return DeadlineExceeded.exit_code
    return LimitExceeded.exit_code if failed_checks == {"limit"} else 1


def run_exit_code(report: RunReport) -> int:
    """5 if limits were all that failed, 124 if time-outs were, else 1."""
    failures = {"limit" if result.limited else result.outcome for result in report.results if not result.ok}
    codes = {"limit": LimitExceeded.exit_code, "timeout": DeadlineExceeded.exit_code}
    return codes.get(failures.pop(), 1) if len(failures) == 1 else 1
