"""The tests that ``arch_matrix`` runs in a repository without tests of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.printable import escape_message
from buildkit_tasks.testing.skip import report_errors

if TYPE_CHECKING:
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult


def test_image_verifies(
    request: pytest.FixtureRequest,
    buildkit_pipeline: Pipeline,
    multiarch_image: str,
    buildkit_platform: Platform,
) -> None:
    """Verify the image and require that every check of this platform passes."""
    with report_errors(request.config):
        report = buildkit_pipeline.verify_image(multiarch_image)
    verdicts = [verdict for verdict in report.platforms if verdict.platform == str(buildkit_platform)]
    problems = [check.message for verdict in verdicts for check in verdict.checks if not check.ok]
    if not verdicts:
        problems.append(f"{buildkit_platform} is not in {multiarch_image}")
    _fail_if_any(problems)


def test_image_runs(
    request: pytest.FixtureRequest,
    buildkit_pipeline: Pipeline,
    multiarch_image: str,
    buildkit_platform: Platform,
) -> None:
    """Run every check of the settings on this platform, on each CPU of the settings."""
    with report_errors(request.config):
        report = buildkit_pipeline.run_image(multiarch_image, (buildkit_platform,))
    problems = [_describe_failure(result) for result in report.results if not result.ok]
    if not report.results:
        problems.append(f"nothing was run on {buildkit_platform}")
    _fail_if_any(problems)


def _fail_if_any(problems: list[str]) -> None:
    """Fail with the problems only: the source of these tests means nothing to who runs them."""
    if problems:
        pytest.fail(escape_message("\n".join(problems)), pytrace=False)


def _describe_failure(result: RunResult) -> str:
    """Return command, CPU, outcome and output of a run that did not pass."""
    cpu_suffix = f" on {result.emulator.cpu}" if result.emulator and result.emulator.cpu else ""
    subject = f"{result.command or 'the image'}{cpu_suffix}"
    return f"{subject}: {result.outcome}: {result.message}\n{result.stdout}{result.stderr}"
