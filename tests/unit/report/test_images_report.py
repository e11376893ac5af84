from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

from buildkit_tasks.report import print_table, to_json, to_junit, to_markdown
from buildkit_tasks.report.model import ImageReport, ImagesReport, NamedTag, Outcome, Report
from buildkit_tasks.report.summary import summarize
from tests.support.report_samples import (
    TWO,
    bad_check,
    bad_run,
    good_run,
    image,
    images,
    run,
    setup,
    verdict,
    verify,
    warning,
)

WRONG = replace(image("wrong"), verify=verify(verdict(TWO[0]), verdict(TWO[1], bad_check())))
UNBUILT = ImageReport(name="unbuilt", error="the disk is full\n  try: free some space")


def table(report: Report) -> str:
    file = io.StringIO()
    print_table(report, file, colour=False)
    return file.getvalue()


def test_an_image_holds_when_it_was_built_and_verified_and_run_on_the_same_platforms() -> None:
    assert image("web").ok
    unreached: list[dict[str, Any]] = [{"build": None}, {"verify": None}, {"run": None}]
    assert not any(replace(image("web"), **step).ok for step in unreached)
    assert not replace(image("web"), run=run(good_run(TWO[0]))).ok
    assert not replace(image("web"), error="late").ok
    assert not WRONG.ok


def test_images_hold_when_each_does_and_there_is_one() -> None:
    assert images().ok
    assert replace(images(), setup=setup()).ok
    assert not ImagesReport().ok
    assert not images(image("web"), WRONG).ok
    assert not replace(images(), error="no engine").ok
    assert not replace(images(), setup=replace(setup(), platforms=())).ok


def test_the_document_has_a_row_for_each_image() -> None:
    tag = NamedTag(ref="example.org/web:1", digest="sha256:1")
    told = json.loads(to_json(images(replace(image("web"), tags=(tag,)), UNBUILT)))
    assert list(told) == ["schema_version", "ok", "setup", "images", "error"]
    assert [list(row) for row in told["images"]] == [
        ["ok", "name", "build", "verify", "run", "tags", "error"]
    ] * 2
    assert [(row["name"], row["ok"]) for row in told["images"]] == [("web", True), ("unbuilt", False)]
    assert told["images"][0]["tags"][0]["ref"] == "example.org/web:1"
    assert (told["images"][1]["build"], told["images"][1]["error"]) == (None, UNBUILT.error)


def test_the_closing_line_counts_images_and_says_where_each_of_the_others_failed() -> None:
    assert summarize(images()).summary_line == "2 of 2 images passed: built, verified and run."
    assert summarize(images(image("web"), WRONG, UNBUILT)).summary_line == (
        "1 of 3 images passed. wrong: FAILED: linux/arm64 (verify)."
        " unbuilt: Stopped before build: the disk is full"
    )
    assert "no engine" in summarize(ImagesReport(error="no engine")).summary_line


def test_the_closing_line_counts_the_warnings_of_all_images() -> None:
    warned = replace(image("web"), verify=verify(*(verdict(name, warning()) for name in TWO)))
    assert summarize(images(warned, image("tool"))).summary_line == (
        "2 of 2 images passed: built, verified and run, with 2 warnings."
    )


def test_the_table_has_a_row_for_each_platform_of_each_image() -> None:
    text = table(images(image("web"), image("tool", "linux/386"), UNBUILT))
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["Image", "Platform"],
        ["web", TWO[0]],
        ["web", TWO[1]],
        ["tool", "linux/386"],
        ["unbuilt", "-"],
    ]
    assert "FAILED the disk is full" in text


def test_what_an_image_was_named_stands_below_the_table() -> None:
    tag = NamedTag(ref="example.org/web:1", digest="sha256:1")
    assert "web: tagged: example.org/web:1" in table(images(replace(image("web"), tags=(tag,))))


def test_junit_has_a_testcase_for_each_platform_of_each_image() -> None:
    ran = run(good_run(TWO[0]), bad_run(TWO[1], Outcome.FAILED))
    text = to_junit(images(image("web"), replace(image("tool"), run=ran), UNBUILT))
    root = ET.fromstring(text)  # noqa: S314 - it was written above
    suites = {suite.get("name", ""): [case.get("name") for case in suite] for suite in root}
    assert suites["web: run"][:2] == [*TWO]
    assert suites["tool: build"] == [*TWO]
    assert suites["unbuilt"] == ["unbuilt as a whole"]
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == [
        TWO[1]
    ]
    assert [case.get("name") for case in root.iter("testcase") if case.find("error") is not None] == [
        "unbuilt as a whole"
    ]


def test_markdown_names_the_image_of_each_failure() -> None:
    text = to_markdown(images(image("web"), WRONG))
    assert "**wrong: verify linux/arm64**" in text
    assert "web: verify" not in text
