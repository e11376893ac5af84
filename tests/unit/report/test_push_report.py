from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from buildkit_tasks import report as faces
from buildkit_tasks.report.model import BuiltPlatform, NamedTag, PushResult, Report, RunReport
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
    run,
    verdict,
    verify,
    warning,
)

TAGS = (
    NamedTag(ref="example.org/app:1", digest=digest("index")),
    NamedTag(ref="example.org/app:2", digest=digest("index"), previous=digest("old")),
    NamedTag(ref="example.org/app:3", digest=digest("index"), previous=digest("index"), moved=False),
)
GOOD = PushResult(
    digest=digest("index"),
    tags=TAGS,
    platforms=tuple(BuiltPlatform(platform=name, digest=digest(name)) for name in TWO),
    verify=verify(),
    run=run(),
    seconds=1.25,
)
UNPROVED = replace(GOOD, verify=None, run=None)
UNVERIFIED = replace(
    GOOD, tags=(), run=None, verify=verify(verdict(TWO[0]), verdict(TWO[1], good_check(), bad_check()))
)
FAILED_RUN = replace(GOOD, tags=(), run=run(good_run(TWO[0]), bad_run(TWO[1])))
LEFT_OUT = replace(GOOD, tags=(), run=run(good_run(TWO[0])))
OTHER_DIGEST = replace(GOOD, digest=digest("other"))
EMPTY_RUN = replace(GOOD, tags=(), run=RunReport(subject="x", results=()))
BAD = [UNVERIFIED, FAILED_RUN, EMPTY_RUN, LEFT_OUT, replace(GOOD, tags=()), replace(UNPROVED, tags=())]


def drawn(report: Report) -> str:
    page = io.StringIO()
    faces.print_table(report, page, colour=False)
    return page.getvalue()


PEOPLE = [drawn, faces.to_markdown, faces.to_html, faces.to_svg]


def test_a_push_holds_when_every_proof_that_was_made_does_and_there_is_a_name() -> None:
    assert GOOD.ok
    assert UNPROVED.ok
    assert not any(report.ok for report in [*BAD, OTHER_DIGEST])


def test_a_platform_that_was_not_run_is_not_proved() -> None:
    assert not LEFT_OUT.is_verified
    assert f"{TWO[1]} was left out of run" in drawn(LEFT_OUT)
    assert f"FAILED: {TWO[1]} (left out of run). No tag was set." in summarize(LEFT_OUT).summary_line


@pytest.mark.parametrize("report", [GOOD, UNPROVED, *BAD])
def test_a_push_holds_if_and_only_if_it_has_no_problem(report: PushResult) -> None:
    assert report.ok is not any(case.problems for step in list_steps(report) for case in step.rows)


@pytest.mark.parametrize("report", [GOOD, UNPROVED, *BAD])
@pytest.mark.parametrize("render", PEOPLE)
def test_every_form_says_in_words_whether_it_failed(render: object, report: PushResult) -> None:
    text = render(report)  # type: ignore[operator]
    assert ("FAILED" in text) is not report.ok
    assert ("No tag was set." in text) is not report.ok
    assert digest("index") in text.replace("\n", "")


def test_the_table_says_what_became_of_each_tag() -> None:
    text = drawn(GOOD)
    assert "example.org/app:1: new" in text
    assert f"example.org/app:2: moved, from {digest('old')}" in text
    assert "example.org/app:3: unchanged" in text
    assert f"pushed {digest('index')} in 1.2 seconds" in text


def test_the_closing_line_says_what_was_proved() -> None:
    assert summarize(GOOD).summary_line == "2 of 2 platforms pushed: verified, run and tagged."
    assert summarize(UNPROVED).summary_line == "2 of 2 platforms pushed: tagged without verification."
    warned = replace(GOOD, verify=verify(verdict(TWO[0]), verdict(TWO[1], good_check(), warning())))
    assert (
        summarize(warned).summary_line == "2 of 2 platforms pushed, with 1 warning: verified, run and tagged."
    )
    assert (
        summarize(UNVERIFIED).summary_line
        == f"1 of 2 platforms passed. FAILED: {TWO[1]} (verify). No tag was set."
    )
    assert (
        summarize(FAILED_RUN).summary_line
        == f"1 of 2 platforms passed. FAILED: {TWO[1]} (run). No tag was set."
    )


def test_several_runs_of_a_platform_have_a_row_each() -> None:
    rows = [line for line in drawn(replace(GOOD, run=both_cpus())).splitlines() if line.startswith("│ linux")]
    assert len([row for row in rows if "linux/amd64" in row]) == 2


def test_junit_has_a_suite_for_each_proof_and_for_the_push() -> None:
    root = ET.fromstring(faces.to_junit(FAILED_RUN))  # noqa: S314 - a document made here
    assert root.attrib["name"] == "push"
    failures = {suite.attrib["name"]: suite.attrib["failures"] for suite in root}
    assert failures == {"verify": "0", "run": "1", "push": "1"}
    names = [suite.attrib["name"] for suite in ET.fromstring(faces.to_junit(UNPROVED))]  # noqa: S314 - as above
    assert names == ["push"]


def test_the_document_has_its_keys_in_their_order() -> None:
    told = json.loads(faces.to_json(GOOD))
    keys = ["schema_version", "ok", "digest", "tags", "platforms", "verify", "run", "seconds"]
    assert list(told) == keys
    assert told["tags"][1] == {
        "ref": "example.org/app:2", "digest": digest("index"), "previous": digest("old"), "moved": True,
    }  # fmt: skip
    assert json.loads(faces.to_json(UNPROVED))["verify"] is None
