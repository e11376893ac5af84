from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import RunReport, RunResult
from buildkit_tasks.testing import default_checks
from tests.support import report_samples as samples

REQUEST: Any = SimpleNamespace(config=None)
ARM64 = Platform.parse("linux/arm64")
GOOD, BAD = samples.good_check(), samples.bad_check()
REPORT = samples.verify(samples.verdict("linux/amd64", GOOD, BAD), samples.verdict("linux/arm64", GOOD))


def check_verification(platform: str) -> None:
    pipeline: Any = SimpleNamespace(verify_image=lambda _: REPORT)
    default_checks.test_image_verifies(REQUEST, pipeline, "x.tar", Platform.parse(platform))


def test_error_fails_with_message() -> None:
    def verify_image(_: str) -> None:
        raise MalformedImage("the layer is broken", hint="inv build-multiarch")

    pipeline: Any = SimpleNamespace(verify_image=verify_image)
    with pytest.raises(pytest.fail.Exception, match="the layer is broken\n  try: ") as excinfo:
        default_checks.test_image_verifies(REQUEST, pipeline, "x.tar", ARM64)
    assert not excinfo.value.pytrace


def test_failed_check_fails_only_its_platform() -> None:
    check_verification("linux/arm64")
    with pytest.raises(pytest.fail.Exception, match=BAD.message[:20]):
        check_verification("linux/amd64")
    with pytest.raises(pytest.fail.Exception, match=r"linux/s390x is not in x\.tar"):
        check_verification("linux/s390x")


def check_runs(*results: RunResult) -> None:
    pipeline: Any = SimpleNamespace(run_image=lambda *_: RunReport(subject="x", results=results))
    default_checks.test_image_runs(REQUEST, pipeline, "x.tar", ARM64)


def test_each_run_must_pass() -> None:
    check_runs(samples.good_run("linux/arm64"))
    with pytest.raises(pytest.fail.Exception):
        check_runs(samples.good_run("linux/arm64"), samples.bad_run("linux/arm64"))
    with pytest.raises(pytest.fail.Exception, match="nothing was run"):
        check_runs()


def test_hostile_output() -> None:
    result = replace(samples.bad_run("linux/arm64"), stdout="\x1b[2J\n::stop-commands::x\n##[error]")
    with pytest.raises(pytest.fail.Exception) as excinfo:
        check_runs(result)
    assert "\\x1b[2J\n\\x3a:stop-commands::x\n#\\x23[error]" in str(excinfo.value)
