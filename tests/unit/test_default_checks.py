from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import RunReport, RunResult
from buildkit_tasks.testing import default_checks
from tests.support import report_samples as samples

ARM64 = Platform.parse("linux/arm64")
GOOD, BAD = samples.good_check(), samples.bad_check()
REPORT = samples.verify(samples.verdict("linux/amd64", GOOD, BAD), samples.verdict("linux/arm64", GOOD))


def check_verification(platform: str) -> None:
    pipeline: Any = SimpleNamespace(verify_image=lambda _: REPORT)
    default_checks.test_image_verifies(pipeline, "x.tar", Platform.parse(platform))


def test_failed_check_fails_only_its_platform() -> None:
    check_verification("linux/arm64")
    with pytest.raises(AssertionError, match=BAD.message[:20]):
        check_verification("linux/amd64")
    with pytest.raises(AssertionError, match=r"linux/s390x is not in x\.tar"):
        check_verification("linux/s390x")


def check_runs(*results: RunResult) -> None:
    pipeline: Any = SimpleNamespace(run_image=lambda *_: RunReport(subject="x", results=results))
    request: Any = SimpleNamespace(config=None)
    default_checks.test_image_runs(request, pipeline, "x.tar", ARM64)


def test_each_run_must_pass() -> None:
    check_runs(samples.good_run("linux/arm64"))
    with pytest.raises(AssertionError):
        check_runs(samples.good_run("linux/arm64"), samples.bad_run("linux/arm64"))
    with pytest.raises(AssertionError, match="nothing was run"):
        check_runs()
