from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from buildkit_tasks.report import to_html
from buildkit_tasks.report.model import Outcome, Report
from tests.support.report_samples import (
    TEN,
    bad_check,
    bad_run,
    every_bad_report,
    every_good_report,
    every_warning_report,
    good_check,
    matrix,
    run,
    verdict,
    verify,
    warning,
)

EVERY = [*every_good_report(), *every_bad_report(), *every_warning_report()]


def page(report: Report) -> ET.Element:
    return ET.fromstring(to_html(report).encode())  # noqa: S314 - a document made here


def words(element: ET.Element) -> list[str]:
    return ["".join(each.itertext()) for each in element]


@pytest.mark.parametrize("report", EVERY)
def test_the_page_fetches_nothing_and_runs_nothing(report: Report) -> None:
    text = to_html(report)
    assert not re.search(
        r"(?i)<script|<link|<img|<iframe|@import|url\(|\son\w+=|\s(src|href)=|javascript:", text
    )
    assert "://" not in text.replace("unix:///", "")
    (policy,) = (meta.attrib["content"] for meta in page(report).iter("meta") if "http-equiv" in meta.attrib)
    assert policy.startswith("default-src 'none'")


def test_the_page_has_colours_for_light_and_for_dark() -> None:
    text = to_html(matrix())
    assert "color-scheme: light dark" in text
    assert "@media (prefers-color-scheme: dark)" in text


@pytest.mark.parametrize("report", EVERY)
def test_the_title_and_the_badge_say_whether_the_report_holds(report: Report) -> None:
    root = page(report)
    title, badge = root.findtext("head/title") or "", root.findtext("body/main/header/span") or ""
    assert title.endswith(f": {badge}")
    assert badge.startswith("ok" if report.ok else "FAILED")


def test_the_table_has_a_row_for_each_platform_that_is_headed_by_its_name() -> None:
    table = next(page(matrix(*TEN)).iter("table"))
    heads, rows = table.findall("thead/tr"), table.findall("tbody/tr")
    assert words(heads[0]) == ["Platform", "Runs through", "Built", "Verified", "Ran", "Seconds"]
    assert [row.findtext("th") for row in rows] == list(TEN)
    assert words(rows[0])[3:] == ["ok", "ok: Hello from amd64", "0.25"]


def test_a_cell_is_of_the_kind_that_it_tells_of() -> None:
    report = verify(
        verdict("linux/amd64"), verdict("linux/arm64", warning()), verdict("linux/386", bad_check())
    )
    last = [row[-1] for row in page(report).findall("body/main/div/table/tbody/tr")]
    assert [cell.attrib["class"] for cell in last] == ["good", "warning", "bad"]


def test_failures_come_before_warnings_each_platform_under_its_own_head() -> None:
    report = verify(
        verdict("linux/amd64", warning()),
        verdict("linux/arm64", good_check(), bad_check(), bad_check(name="isa"), warning()),
    )
    main = page(report).find("body/main")
    assert main is not None
    assert [each.text for each in main.iter("h2")] == ["What failed", "Warnings"]
    kinds = [(each.attrib["class"], "".join(each[0].itertext())) for each in main.iter("details")]
    assert kinds == [
        ("card fail", "verify linux/arm642"),
        ("card warn", "verify linux/amd64"),
        ("card warn", "verify linux/arm64"),
    ]
    failed = next(main.iter("details"))
    assert [each.text for each in failed.iter("h3")] == ["binary-machine", "isa"]


def test_what_failed_is_unfolded() -> None:
    folded = [each for each in page(run(bad_run("linux/arm64"))).iter("details") if "open" not in each.attrib]
    assert folded == []


def test_the_facts_of_a_problem_are_named_and_the_output_of_a_run_keeps_its_lines() -> None:
    root = page(run(bad_run("linux/s390x", Outcome.TIMEOUT, stdout="\n one\n  two\n", stderr="three")))
    assert dict(zip(*([each.text for each in root.iter(tag)] for tag in ("dt", "dd")), strict=True)) == {
        "exit code": "1",
        "runner": "docker",
        "emulator": "/usr/bin/qemu-s390x 10.0.2 max",
    }
    outputs = [each.text for each in root.iter("div") if each.attrib.get("class") == "text output"]
    assert outputs == ["\n one\n  two\n", "three"]
