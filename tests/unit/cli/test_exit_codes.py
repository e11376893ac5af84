from __future__ import annotations

from dataclasses import replace

import pytest

from buildkit_tasks.cli.exit_codes import push_exit_code, verify_exit_code
from buildkit_tasks.report.model import Check, Outcome, PushResult, RunResult, VerifyReport
from tests.support import report_samples as samples

LIMIT, WRONG = samples.bad_check(name="limit"), samples.bad_check()


def failed_verification(*checks: Check) -> VerifyReport:
    return samples.verify(samples.verdict("linux/amd64", samples.good_check(), *checks))


@pytest.mark.parametrize(
    ("checks", "code"), [((LIMIT,), 5), ((LIMIT, LIMIT), 5), ((WRONG,), 1), ((LIMIT, WRONG), 1)]
)
def test_only_a_limit_ends_with_5(checks: tuple[Check, ...], code: int) -> None:
    assert verify_exit_code(failed_verification(*checks)) == code


@pytest.mark.parametrize("others", [(), (LIMIT,), (WRONG,)])
def test_verification_without_time_ends_with_124(others: tuple[Check, ...]) -> None:
    late = samples.bad_check(name="timeout")
    assert verify_exit_code(failed_verification(late, *others)) == 124


def failed_push(verify: VerifyReport | None, *results: RunResult) -> PushResult:
    run = samples.run(*results) if results else None
    return replace(samples.push(), tags=(), verify=verify, run=run)


def test_push_ends_with_the_code_of_the_step_that_failed() -> None:
    verified = samples.verify(samples.verdict("linux/amd64", samples.good_check()))
    assert push_exit_code(failed_push(failed_verification(LIMIT))) == 5
    assert push_exit_code(failed_push(failed_verification(WRONG))) == 1
    assert push_exit_code(failed_push(verified, samples.bad_run("linux/amd64", Outcome.TIMEOUT))) == 124
    assert push_exit_code(failed_push(verified, samples.bad_run("linux/amd64"))) == 1
    assert push_exit_code(failed_push(None)) == push_exit_code(None) == 1
