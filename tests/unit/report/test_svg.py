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
    bad_run,
    every_bad_report,
    every_good_report,
    every_warning_report,
    good_run,
    matrix,
    run,
    verdict,
    verify,
    warning,
)

SVG = "{http://www.w3.org/2000/svg}"
EVERY = [*every_good_report(), *every_bad_report(), *every_warning_report()]


def picture(report: Report) -> ET.Element:
    return ET.fromstring(to_svg(report).encode())  # noqa: S314 - a document made here


def texts(report: Report) -> list[ET.Element]:
    return list(picture(report).iter(f"{SVG}text"))


def lines(report: Report) -> list[str]:
    return [element.text or "" for element in texts(report)]


def width_of(text: str) -> int:
    return sum(2 if character > "\u2e80" else 1 for character in text)


@pytest.mark.parametrize("report", EVERY)
def test_the_picture_fetches_nothing_and_runs_nothing(report: Report) -> None:
    text = to_svg(report)
    assert not re.search(
        r"(?i)<script|<image|<a\b|<foreignObject|@import|@font-face|url\(|\son\w+=|href=", text
    )
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "", 1).replace("unix:///", "")


def test_the_picture_has_colours_for_light_and_for_dark() -> None:
    light, dark = to_svg(matrix()).split("@media (prefers-color-scheme: dark)")
    for name in (".good", ".warning", ".bad", ".quiet", ".card", ".sign"):
        assert f"{name} {{" in light
        assert f"{name} {{" in dark


@pytest.mark.parametrize("report", EVERY)
def test_the_picture_says_in_words_whether_the_report_holds(report: Report) -> None:
    root = picture(report)
    title = root.findtext(f"{SVG}title") or ""
    assert title.partition(": ")[2].startswith("ok" if report.ok else "FAILED")
    assert title.partition(": ")[2] in lines(report)
    assert root.attrib["role"] == "img"


def test_the_picture_has_a_row_for_each_of_ten_platforms_one_below_the_other() -> None:
    found = [element for element in texts(matrix(*TEN)) if element.text in TEN]
    assert [element.text for element in found] == list(TEN)
    heights = [float(element.attrib["y"]) for element in found]
    assert {round(low - high, 3) for high, low in pairwise(heights)} == {30}


@pytest.mark.parametrize("report", [*EVERY, run(good_run("linux/arm64", stdout="日本語" * 30))])
def test_no_text_runs_out_of_the_picture_or_into_the_next_column(report: Report) -> None:
    root = picture(report)
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    rows: dict[str, list[tuple[float, float]]] = {}
    for element in texts(report):
        x, size = float(element.attrib["x"]), width_of(element.text or "") * 7.85
        kind = element.attrib.get("class", "").split()
        left = x - size if "end" in kind else x
        right = left + size * (18 / 13 if "name" in kind else 1)
        assert 0 <= left <= right <= width
        assert 0 < float(element.attrib["y"]) < height
        rows.setdefault(element.attrib["y"], []).append((left, right))
    for row in rows.values():
        assert all(before[1] < after[0] for before, after in pairwise(sorted(row)))


def test_each_tone_has_a_sign_of_its_own_beside_its_colour() -> None:
    report = verify(
        verdict("linux/amd64"), verdict("linux/arm64", warning()), verdict("linux/386", bad_check())
    )
    signs = {}
    for group in picture(report).iter(f"{SVG}g"):
        circle, path = group
        signs[circle.attrib["class"]] = path.attrib["d"]
    assert set(signs) == {"good", "warning", "bad"}
    assert len(set(signs.values())) == 3


def test_a_long_line_is_folded_and_keeps_all_its_words() -> None:
    words = [f"word{n**2}" for n in range(200)]
    message = " ".join(words)
    found = lines(verify(verdict("linux/arm64", bad_check(message=message))))
    assert message in "".join(found)
    folded = [line for line in found if "word" in line and not line.endswith("...")]  # not the cell
    assert len(folded) > 10
    assert all(set(line.split()) <= set(words) for line in folded)
    assert max(map(len, found)) <= 100


def test_a_problem_of_very_many_lines_is_cut_and_says_so() -> None:
    found = lines(verify(verdict("linux/arm64", bad_check(message="\n".join("x" * 1000)))))
    assert found.count("x") == 60
    assert any(
        re.match(r"\(\d+ more lines: a --report file of another kind has them all\)", each) for each in found
    )


def test_a_long_output_of_a_failing_run_shows_its_end_and_says_so() -> None:
    found = lines(run(bad_run("linux/arm64", stdout="\n".join(f"line {n}." for n in range(100)))))
    assert "(60 lines before these: a --report file has them all)" in found
    assert "line 59." not in found
    assert {"line 60.", "line 99."} <= set(found)


def test_the_picture_in_the_documentation_is_one_of_ten_platforms_that_hold() -> None:
    path = Path(__file__).parents[3] / "docs" / "matrix.svg"
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    found = [element.text for element in root.iter(f"{SVG}text")]
    assert [name for name in found if name in TEN] == list(TEN)
    assert (root.findtext(f"{SVG}title") or "").startswith("arch-matrix: ok")
