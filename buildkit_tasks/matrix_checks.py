"""The tests that ``arch_matrix`` runs in a repository that brings none of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.line import Line
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.results import RunResult


def test_the_image_is_what_it_says(line: Line, multiarch_image: str, platform: Platform) -> None:
    """Index, configuration and program of this platform agree."""
    report = line.images.verify(multiarch_image, ())
    verdicts = [verdict for verdict in report.platforms if verdict.platform == str(platform)]
    problems = [check.message for verdict in verdicts for check in verdict.checks if not check.ok]
    assert verdicts, f"{platform} is not in {multiarch_image}"
    assert not problems, "\n".join(problems)


def test_the_image_runs(run_on_platform: Callable[[], RunResult]) -> None:
    """Its program runs on this platform and does what the settings expect."""
    result = run_on_platform()
    assert result.ok, f"{result.outcome}: {result.message}\n{result.stdout}{result.stderr}"
