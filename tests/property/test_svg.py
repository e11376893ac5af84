from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.report import to_svg
from buildkit_tasks.report.model import Report
from buildkit_tasks.report.text import escape_unprintable
from tests.support.report_samples import (
    bad_check,
    bad_run,
    good_check,
    run,
    stopped,
    verdict,
    verify,
    warning,
)

MARKS = st.sampled_from(
    ["<", ">", "&", '"', "'", "</text>", "<script>", "<!--", "]]>", "&lt;", "日本", "👩‍💻"]
)
SPECIAL = st.sampled_from("\x00\x1b\r\n\t\udc80\uffff\u202e")
ANY_TEXT = st.lists(MARKS | SPECIAL | st.text(st.characters(exclude_categories=()))).map("".join)

SVG = "{http://www.w3.org/2000/svg}"
SHORT = st.text("<a", min_size=1, max_size=20)  # is not folded


def picture(report: Report) -> ET.Element:
    return ET.fromstring(to_svg(report).encode())  # noqa: S314 - a document made here


def written(report: Report) -> str:
    """Give all the words of a picture in their order, with no regard to where lines were folded."""
    return "".join(element.text or "" for element in picture(report).iter(f"{SVG}text"))


def shown(text: str) -> str:
    return escape_unprintable(text).expandtabs(4).replace("\n", "")


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT.filter(str.strip))
@example("]]>", "\x00\x1b[2J", "\ud800")
def test_whatever_a_check_or_a_warning_says_is_written_in_the_picture(
    message: str, warned: str, platform: str
) -> None:
    checks = (good_check(), bad_check(message=f"<{message}>"), warning(f"<{warned}>"))
    text = written(verify(verdict(platform, *checks)))
    assert shown(f"<{message}>") in text
    assert shown(f"<{warned}>") in text


@given(ANY_TEXT.filter(lambda text: text.count("\n") < 20))
def test_whatever_a_run_prints_is_written_in_the_picture(stdout: str) -> None:
    assert shown(f"<{stdout}>") in written(run(bad_run("linux/arm64", stdout=f"<{stdout}>")))


@given(ANY_TEXT)
def test_whatever_stopped_the_line_is_written_in_the_picture(error: str) -> None:
    assert shown(f"<{error}>") in written(stopped(f"<{error}>"))


@given(SHORT, SHORT)
def test_no_text_adds_an_element(platform: str, message: str) -> None:
    def tags(platform: str, message: str) -> list[str]:
        both = (bad_check(message=message), warning(message))
        return [element.tag for element in picture(verify(verdict(platform, *both))).iter()]

    assert tags(platform, message) == tags("linux/arm64", "m")
