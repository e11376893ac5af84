"""The tests that ``arch_matrix`` runs in a repository that brings none of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.testing.skip import skip_without_engine

if TYPE_CHECKING:
    import pytest

    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult


def test_image_verifies(line: Pipeline, multiarch_image: str, platform: Platform) -> None:
    """Index, configuration and program of this platform agree."""
    report = line.resolver.verify(multiarch_image, ())
    verdicts = [verdict for verdict in report.platforms if verdict.platform == str(platform)]
    problems = [check.message for verdict in verdicts for check in verdict.checks if not check.ok]
    assert verdicts, f"{platform} is not in {multiarch_image}"
    assert not problems, "\n".join(problems)


def test_image_runs(
    request: pytest.FixtureRequest, line: Pipeline, multiarch_image: str, platform: Platform
) -> None:
    """All that the settings run on this platform, on each CPU that they ask for, does what they expect."""
    with skip_without_engine(request.config):
        report = line.run_image(multiarch_image, (platform,))
    problems = [_describe_failure(result) for result in report.results if not result.ok]
    assert report.results, f"nothing was run on {platform}"
    assert not problems, "\n".join(problems)


def _describe_failure(result: RunResult) -> str:
    """How a run that did not pass ended, with what it printed."""
    cpu_suffix = f" on {result.emulator.cpu}" if result.emulator and result.emulator.cpu else ""
    subject = f"{result.command or 'the image'}{cpu_suffix}"
    return f"{subject}: {result.outcome}: {result.message}\n{result.stdout}{result.stderr}"
