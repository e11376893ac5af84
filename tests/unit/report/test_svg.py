from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from buildkit_tasks.report import to_svg
from buildkit_tasks.report.model import Report
from tests.support.report_samples import (
    TEN,
    bad_check,
    bad_reports,
    bad_run,
    good_reports,
    good_run,
    matrix,
    run,
    verdict,
    verify,
    warning,
    warning_reports,
)

SVG = "{http://www.w3.org/2000/svg}"
ALL_REPORTS = [*good_reports(), *bad_reports(), *warning_reports()]


def parse_image(report: Report) -> ET.Element:
    return ET.fromstring(to_svg(report).encode())  # noqa: S314 - a document made here


def text_elements(report: Report) -> list[ET.Element]:
    return list(parse_image(report).iter(f"{SVG}text"))


def text_lines(report: Report) -> list[str]:
    return [element.text or "" for element in text_elements(report)]


def column_width(text: str) -> int:
    return sum(2 if character > "\u2e80" else 1 for character in text)


@pytest.mark.parametrize("report", ALL_REPORTS)
def test_no_scripts_or_requests(report: Report) -> None:
    text = to_svg(report)
    assert not re.search(
        r"(?i)<script|<image|<a\b|<foreignObject|@import|@font-face|url\(|\son\w+=|href=", text
    )
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "", 1).replace("unix:///", "")


def test_light_and_dark_colours() -> None:
    light, dark = to_svg(matrix()).split("@media (prefers-color-scheme: dark)")
    for name in (".good", ".warning", ".bad", ".quiet", ".card", ".sign"):
        assert f"{name} {{" in light
        assert f"{name} {{" in dark


@pytest.mark.parametrize("report", ALL_REPORTS)
def test_title_has_verdict(report: Report) -> None:
    root = parse_image(report)
    title = root.findtext(f"{SVG}title") or ""
    assert title.partition(": ")[2].startswith("ok" if report.ok else "FAILED")
    assert title.partition(": ")[2] in text_lines(report)
    assert root.attrib["role"] == "img"


def test_table_row_per_platform() -> None:
    elements = [element for element in text_elements(matrix(*TEN)) if element.text in TEN]
    assert [element.text for element in elements] == list(TEN)
    heights = [float(element.attrib["y"]) for element in elements]
    assert {round(low - high, 3) for high, low in pairwise(heights)} == {30}


@pytest.mark.parametrize("report", [*ALL_REPORTS, run(good_run("linux/arm64", stdout="日本語" * 30))])
def test_texts_do_not_overlap(report: Report) -> None:
    root = parse_image(report)
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    rows: dict[str, list[tuple[float, float]]] = {}
    for element in text_elements(report):
        x, size = float(element.attrib["x"]), column_width(element.text or "") * 7.85
        kind = element.attrib.get("class", "").split()
        left = x - size if "end" in kind else x
        right = left + size * (18 / 13 if "name" in kind else 1)
        assert 0 <= left <= right <= width
        assert 0 < float(element.attrib["y"]) < height
        rows.setdefault(element.attrib["y"], []).append((left, right))
    for row in rows.values():
        assert all(before[1] < after[0] for before, after in pairwise(sorted(row)))


def test_icon_per_severity() -> None:
    report = verify(
        verdict("linux/amd64"), verdict("linux/arm64", warning()), verdict("linux/386", bad_check())
    )
    icons = {}
    for group in parse_image(report).iter(f"{SVG}g"):
        circle, path = group
        icons[circle.attrib["class"]] = path.attrib["d"]
    assert set(icons) == {"good", "warning", "bad"}
    assert len(set(icons.values())) == 3


def test_long_line_is_wrapped() -> None:
    words = [f"word{n**2}" for n in range(200)]
    message = " ".join(words)
    all_lines = text_lines(verify(verdict("linux/arm64", bad_check(message=message))))
    assert message in "".join(all_lines)
    wrapped = [
        line for line in all_lines if "word" in line and not line.endswith("...")
    ]  # not the truncated cell
    assert len(wrapped) > 10
    assert all(set(line.split()) <= set(words) for line in wrapped)
    assert max(map(len, all_lines)) <= 100


def test_long_problem_is_truncated() -> None:
    all_lines = text_lines(verify(verdict("linux/arm64", bad_check(message="\n".join("x" * 1000)))))
    assert all_lines.count("x") == 60
    assert any(
        re.match(r"\(\d+ more lines: a --report file of another kind has them all\)", line)
        for line in all_lines
    )


def test_long_output_shows_its_end() -> None:
    all_lines = text_lines(run(bad_run("linux/arm64", stdout="\n".join(f"line {n}." for n in range(100)))))
    assert "(60 lines before these: a --report file has them all)" in all_lines
    assert "line 59." not in all_lines
    assert {"line 60.", "line 99."} <= set(all_lines)


def test_image_in_documentation() -> None:
    path = Path(__file__).parents[3] / "docs" / "matrix.svg"
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    names = [element.text for element in root.iter(f"{SVG}text")]
    assert [text for text in names if text in TEN] == list(TEN)
    assert (root.findtext(f"{SVG}title") or "").startswith("arch-matrix: ok")
