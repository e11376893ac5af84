from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from buildkit_tasks.report import to_html
from buildkit_tasks.report.model import Outcome, Report
from tests.support.report_samples import (
    TEN,
    bad_check,
    bad_reports,
    bad_run,
    good_check,
    good_reports,
    matrix,
    run,
    three_commands,
    verdict,
    verify,
    warning,
    warning_reports,
)

ALL_REPORTS = [*good_reports(), *bad_reports(), *warning_reports()]


def parse_page(report: Report) -> ET.Element:
    return ET.fromstring(to_html(report).encode())  # noqa: S314 - a document made here


def child_texts(element: ET.Element) -> list[str]:
    return ["".join(child.itertext()) for child in element]


@pytest.mark.parametrize("report", ALL_REPORTS)
def test_no_scripts_or_requests(report: Report) -> None:
    text = to_html(report)
    assert not re.search(
        r"(?i)<script|<link|<img|<iframe|@import|url\(|\son\w+=|\s(src|href)=|javascript:", text
    )
    assert "://" not in text.replace("unix:///", "")
    (policy,) = (
        meta.attrib["content"] for meta in parse_page(report).iter("meta") if "http-equiv" in meta.attrib
    )
    assert policy.startswith("default-src 'none'")


def test_text_is_escaped() -> None:
    check = replace(bad_check(), message="<b>message</b>")
    text = to_html(verify(verdict("linux/arm64", check))) + to_html(
        run(replace(bad_run("linux/arm64"), stdout="<b>output</b>"))
    )
    assert "&lt;b&gt;message&lt;/b&gt;" in text
    assert "&lt;b&gt;output&lt;/b&gt;" in text
    assert "<b>" not in text


def test_light_and_dark_colours() -> None:
    text = to_html(matrix())
    assert "color-scheme: light dark" in text
    assert "@media (prefers-color-scheme: dark)" in text


@pytest.mark.parametrize("report", ALL_REPORTS)
def test_title_and_badge_have_verdict(report: Report) -> None:
    root = parse_page(report)
    title, badge = root.findtext("head/title") or "", root.findtext("body/main/header/span") or ""
    assert title.endswith(f": {badge}")
    assert badge.startswith("ok" if report.ok else "FAILED")


def test_table_row_per_platform() -> None:
    table = next(parse_page(matrix(*TEN)).iter("table"))
    heads, rows = table.findall("thead/tr"), table.findall("tbody/tr")
    assert child_texts(heads[0]) == ["Platform", "Runs through", "Built", "Verified", "Ran", "Seconds"]
    assert [row.findtext("th") for row in rows] == list(TEN)
    assert child_texts(rows[0])[3:] == ["ok", "ok: Hello from amd64", "0.25"]


def test_cell_class_is_severity() -> None:
    report = verify(
        verdict("linux/amd64"), verdict("linux/arm64", warning()), verdict("linux/386", bad_check())
    )
    last_cells = [row[-1] for row in parse_page(report).findall("body/main/div/table/tbody/tr")]
    assert [cell.attrib["class"] for cell in last_cells] == ["good", "warning", "bad"]


def test_failures_before_warnings() -> None:
    report = verify(
        verdict("linux/amd64", warning()),
        verdict("linux/arm64", good_check(), bad_check(), bad_check(name="isa"), warning()),
    )
    main = parse_page(report).find("body/main")
    assert main is not None
    assert [element.text for element in main.iter("h2")] == ["What failed", "Warnings"]
    kinds = [(element.attrib["class"], "".join(element[0].itertext())) for element in main.iter("details")]
    assert kinds == [
        ("card fail", "verify linux/arm642"),
        ("card warn", "verify linux/amd64"),
        ("card warn", "verify linux/arm64"),
    ]
    failed = next(main.iter("details"))
    assert [element.text for element in failed.iter("h3")] == ["binary-machine", "isa"]


def test_failures_are_unfolded() -> None:
    root = parse_page(run(bad_run("linux/arm64")))
    assert all("open" in element.attrib for element in root.iter("details"))


def test_facts_and_output() -> None:
    root = parse_page(run(bad_run("linux/s390x", Outcome.TIMEOUT, stdout="\n one\n  two\n", stderr="three")))
    assert dict(
        zip(*([element.text for element in root.iter(tag)] for tag in ("dt", "dd")), strict=True)
    ) == {"exit code": "1", "runner": "docker", "emulator": "/usr/bin/qemu-s390x 10.0.2 max"}
    outputs = [element.text for element in root.iter("div") if element.attrib.get("class") == "text output"]
    assert outputs == ["\n one\n  two\n", "three"]


def test_cells_break_lines() -> None:
    """Columns of several CPUs and commands are wider than a page: text is broken, and no column cut off."""
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", to_html(three_commands()))
    cell_rules = [text for selectors, text in rules if "td" in map(str.strip, selectors.split(","))]
    assert any("overflow-wrap: anywhere" in text for text in cell_rules)
    assert not any("nowrap" in text for text in cell_rules)
