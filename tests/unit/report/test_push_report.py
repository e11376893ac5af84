from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest

from buildkit_tasks import report as renderers
from buildkit_tasks.report.model import PushResult, Report, RunReport
from buildkit_tasks.report.steps import list_steps
from buildkit_tasks.report.summary import summarize
from tests.support.report_samples import (
    TWO,
    bad_check,
    bad_run,
    both_cpus,
    digest,
    good_check,
    good_run,
    push,
    run,
    verdict,
    verify,
    warning,
)
from tests.unit.report.rendering import READABLE, draw

COMPLETE_PUSH = push()
WITHOUT_CHECKS = replace(COMPLETE_PUSH, verify=None, run=None)
UNVERIFIED = replace(
    COMPLETE_PUSH,
    tags=(),
    run=None,
    verify=verify(verdict(TWO[0]), verdict(TWO[1], good_check(), bad_check())),
)
FAILED_RUN = replace(COMPLETE_PUSH, tags=(), run=run(good_run(TWO[0]), bad_run(TWO[1])))
LEFT_OUT = replace(COMPLETE_PUSH, tags=(), run=run(good_run(TWO[0])))
OTHER_DIGEST = replace(COMPLETE_PUSH, digest=digest("other"))
EMPTY_RUN = replace(COMPLETE_PUSH, tags=(), run=RunReport(subject="x", results=()))
BAD_PUSHES = [
    UNVERIFIED,
    FAILED_RUN,
    EMPTY_RUN,
    LEFT_OUT,
    replace(COMPLETE_PUSH, tags=()),
    replace(WITHOUT_CHECKS, tags=()),
]


def test_push_is_ok() -> None:
    assert COMPLETE_PUSH.ok
    assert WITHOUT_CHECKS.ok
    assert not any(report.ok for report in [*BAD_PUSHES, OTHER_DIGEST])


def test_left_out_platform_is_unverified() -> None:
    assert not LEFT_OUT.is_verified
    assert f"{TWO[1]} was left out of run" in draw(LEFT_OUT)
    assert f"FAILED: {TWO[1]} (left out of run). No tag was set." in summarize(LEFT_OUT).summary_line


@pytest.mark.parametrize("report", [COMPLETE_PUSH, WITHOUT_CHECKS, *BAD_PUSHES])
def test_ok_means_no_problem(report: PushResult) -> None:
    assert report.ok is not any(case.problems for step in list_steps(report) for case in step.rows)


@pytest.mark.parametrize("report", [COMPLETE_PUSH, WITHOUT_CHECKS, *BAD_PUSHES])
@pytest.mark.parametrize("render", READABLE)
def test_failure_is_in_every_format(render: Callable[[Report], str], report: PushResult) -> None:
    text = render(report)
    assert ("FAILED" in text) is not report.ok
    assert ("No tag was set." in text) is not report.ok
    assert digest("index") in text.replace("\n", "")


def test_tags_are_notes() -> None:
    text = draw(COMPLETE_PUSH)
    assert "example.org/app:1: new" in text
    assert f"example.org/app:2: moved, from {digest('old')}" in text
    assert "example.org/app:3: unchanged" in text
    assert f"pushed {digest('index')} in 1.2 seconds" in text


def test_summary_line() -> None:
    assert summarize(COMPLETE_PUSH).summary_line == "2 of 2 platforms pushed: verified, run and tagged."
    assert summarize(WITHOUT_CHECKS).summary_line == "2 of 2 platforms pushed: tagged without verification."
    push_with_warning = replace(
        COMPLETE_PUSH, verify=verify(verdict(TWO[0]), verdict(TWO[1], good_check(), warning()))
    )
    assert (
        summarize(push_with_warning).summary_line
        == "2 of 2 platforms pushed, with 1 warning: verified, run and tagged."
    )
    assert (
        summarize(UNVERIFIED).summary_line
        == f"1 of 2 platforms passed. FAILED: {TWO[1]} (verify). No tag was set."
    )
    assert (
        summarize(FAILED_RUN).summary_line
        == f"1 of 2 platforms passed. FAILED: {TWO[1]} (run). No tag was set."
    )


def test_table_row_per_run() -> None:
    rows = [
        line
        for line in draw(replace(COMPLETE_PUSH, run=both_cpus())).splitlines()
        if line.startswith("│ linux")
    ]
    assert len([row for row in rows if "linux/amd64" in row]) == 2


def test_junit_suites() -> None:
    root = ET.fromstring(renderers.to_junit(FAILED_RUN))  # noqa: S314 - a document made here
    assert root.attrib["name"] == "push"
    failures = {suite.attrib["name"]: suite.attrib["failures"] for suite in root}
    assert failures == {"verify": "0", "run": "1", "push": "1"}
    names = [suite.attrib["name"] for suite in ET.fromstring(renderers.to_junit(WITHOUT_CHECKS))]  # noqa: S314 - a document made here
    assert names == ["push"]


def test_document_keys() -> None:
    document = json.loads(renderers.to_json(COMPLETE_PUSH))
    keys = ["schema_version", "ok", "digest", "tags", "platforms", "verify", "run", "seconds"]
    assert list(document) == keys
    assert document["tags"][1] == {
        "ref": "example.org/app:2", "digest": digest("index"), "previous": digest("old"), "moved": True,
    }  # fmt: skip
    assert json.loads(renderers.to_json(WITHOUT_CHECKS))["verify"] is None
