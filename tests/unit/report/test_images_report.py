from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

from buildkit_tasks.report import to_json, to_junit, to_markdown
from buildkit_tasks.report.model import ImageReport, ImagesReport, NamedTag, Outcome
from buildkit_tasks.report.summary import summarize
from tests.support.report_samples import (
    TWO,
    bad_check,
    bad_run,
    good_run,
    image,
    images,
    push,
    run,
    setup,
    verdict,
    verify,
    warning,
)
from tests.unit.report.rendering import draw

UNVERIFIED_IMAGE = replace(image("wrong"), verify=verify(verdict(TWO[0]), verdict(TWO[1], bad_check())))
UNBUILT_IMAGE = ImageReport(name="unbuilt", error="the disk is full\n  try: free some space")


def test_image_is_ok() -> None:
    assert image("web").ok
    unreached: list[dict[str, Any]] = [{"build": None}, {"verify": None}, {"run": None}]
    assert not any(replace(image("web"), **step).ok for step in unreached)
    assert not replace(image("web"), run=run(good_run(TWO[0]))).ok
    assert not replace(image("web"), error="late").ok
    assert not UNVERIFIED_IMAGE.ok


def test_images_are_ok() -> None:
    assert images().ok
    assert replace(images(), setup=setup()).ok
    assert not ImagesReport().ok
    assert not images(image("web"), UNVERIFIED_IMAGE).ok
    assert not replace(images(), error="no engine").ok
    assert not replace(images(), setup=replace(setup(), platforms=())).ok


def test_document_keys() -> None:
    tag = NamedTag(ref="example.org/web:1", digest="sha256:1")
    document = json.loads(to_json(images(replace(image("web"), tags=(tag,)), UNBUILT_IMAGE)))
    assert list(document) == ["schema_version", "ok", "setup", "images", "error"]
    assert [list(row) for row in document["images"]] == [
        ["ok", "name", "build", "verify", "run", "tags", "error"]
    ] * 2
    assert [(row["name"], row["ok"]) for row in document["images"]] == [("web", True), ("unbuilt", False)]
    assert document["images"][0]["tags"][0]["ref"] == "example.org/web:1"
    assert (document["images"][1]["build"], document["images"][1]["error"]) == (None, UNBUILT_IMAGE.error)


def test_summary_line_of_failed_images() -> None:
    assert summarize(images()).summary_line == "2 of 2 images passed: built, verified and run."
    assert summarize(images(image("web"), UNVERIFIED_IMAGE, UNBUILT_IMAGE)).summary_line == (
        "1 of 3 images passed. wrong: FAILED: linux/arm64 (verify)."
        " unbuilt: Stopped before the end of build: the disk is full"
    )
    assert "no engine" in summarize(ImagesReport(error="no engine")).summary_line


def test_summary_line_counts_warnings() -> None:
    image_with_warnings = replace(image("web"), verify=verify(*(verdict(name, warning()) for name in TWO)))
    assert summarize(images(image_with_warnings, image("tool"))).summary_line == (
        "2 of 2 images passed: built, verified and run, with 2 warnings."
    )


def test_table_row_per_platform() -> None:
    text = draw(images(image("web"), image("tool", "linux/386"), UNBUILT_IMAGE))
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["Image", "Platform"],
        ["web", TWO[0]],
        ["web", TWO[1]],
        ["tool", "linux/386"],
        ["unbuilt", "-"],
    ]
    assert "FAILED the disk is full" in text


def test_tags_are_notes() -> None:
    tag = NamedTag(ref="example.org/web:1", digest="sha256:1")
    assert "web: tagged: example.org/web:1" in draw(images(replace(image("web"), tags=(tag,))))


def test_junit_suite_per_image() -> None:
    half_passed = run(good_run(TWO[0]), bad_run(TWO[1], Outcome.FAILED))
    text = to_junit(images(image("web"), replace(image("tool"), run=half_passed), UNBUILT_IMAGE))
    root = ET.fromstring(text)  # noqa: S314 - a document made here
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


def test_markdown_names_failed_image() -> None:
    text = to_markdown(images(image("web"), UNVERIFIED_IMAGE))
    assert "**wrong: verify linux/arm64**" in text
    assert "web: verify" not in text


def one_step(step: str, *names: str, **fields: Any) -> ImagesReport:
    """Return the report of a task with one step, such as ``verify-arch``, on several images."""
    return ImagesReport(images=tuple(ImageReport(name=name, steps=(step,), **fields) for name in names))


def test_one_step_of_images() -> None:
    verified, ran = one_step("verify", "web", "tool", verify=verify()), one_step("run", "web", run=run())
    assert (verified.ok, ran.ok) == (True, True)
    assert summarize(verified).summary_line == "2 of 2 images passed: verified."
    assert summarize(ran).summary_line == "1 of 1 image passed: run."
    assert summarize(verified).columns == ("Image", "Platform", "Verified")
    assert "Built" not in summarize(ran).columns
    assert not one_step("verify", "web", run=run()).ok
    assert f"web: image: {verify().subject} {verify().digest}" in draw(verified)
    assert f"web: image: {run().subject}" in draw(ran)
    assert "web: verify" in to_junit(verified)
    assert "web: build" not in to_junit(verified)


def test_failed_step_of_images() -> None:
    failed = one_step("verify", "web", error="no such file")
    summary = summarize(
        replace(failed, images=(*failed.images, *one_step("verify", "tool", verify=verify()).images))
    )
    assert not summary.ok
    assert summary.summary_line == "1 of 2 images passed. web: Stopped before the end of verify: no such file"
    assert "FAILED no such file" in draw(failed)
    both = replace(failed, images=(*failed.images, *one_step("verify", "tool", error="no tag").images))
    assert summarize(both).summary_line == (
        "0 of 2 images passed. web: Stopped before the end of verify: no such file."
        " tool: Stopped before the end of verify: no tag"
    )


def test_pushed_images() -> None:
    pushed = push(verify=None, run=None)
    report = one_step("push", "web", "tool", push=pushed, tags=pushed.tags)
    assert report.ok
    assert summarize(report).summary_line == "2 of 2 images passed: tagged."
    assert "web: tagged: example.org/app:1" in draw(report)
    assert {"web: push", "tool: push"} <= {suite.get("name") for suite in ET.fromstring(to_junit(report))}  # noqa: S314
    full = one_step("push", "web", push=push(), tags=push().tags)
    assert summarize(full).summary_line == "1 of 1 image passed: verified, run and tagged."
    failed = push(run=None, tags=(), verify=verify(verdict(TWO[0]), verdict(TWO[1], bad_check())))
    report = one_step("push", "web", push=failed, verify=failed.verify)
    assert not report.ok
    assert "web: FAILED: linux/arm64 (verify)" in summarize(report).summary_line
