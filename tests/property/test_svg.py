from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.printable import escape_unprintable
from buildkit_tasks.report import to_svg
from buildkit_tasks.report.model import Report
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
SHORT = st.text("<a", min_size=1, max_size=20)  # not wrapped


def parse_image(report: Report) -> ET.Element:
    return ET.fromstring(to_svg(report).encode())  # noqa: S314 - a document made here


def image_text(report: Report) -> str:
    """Return the text of an image without the line ends of wrapping."""
    return "".join(element.text or "" for element in parse_image(report).iter(f"{SVG}text"))


def escape_and_unwrap(text: str) -> str:
    return escape_unprintable(text).expandtabs(4).replace("\n", "")


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT.filter(str.strip))
@example("]]>", "\x00\x1b[2J", "\ud800")
def test_checks_round_trip(message: str, warning_message: str, platform: str) -> None:
    checks = (good_check(), bad_check(message=f"<{message}>"), warning(f"<{warning_message}>"))
    text = image_text(verify(verdict(platform, *checks)))
    assert escape_and_unwrap(f"<{message}>") in text
    assert escape_and_unwrap(f"<{warning_message}>") in text


@given(ANY_TEXT.filter(lambda text: text.count("\n") < 20))
def test_run_output_round_trips(stdout: str) -> None:
    assert escape_and_unwrap(f"<{stdout}>") in image_text(run(bad_run("linux/arm64", stdout=f"<{stdout}>")))


@given(ANY_TEXT)
def test_error_round_trips(error: str) -> None:
    assert escape_and_unwrap(f"<{error}>") in image_text(stopped(f"<{error}>"))


@given(SHORT, SHORT)
def test_text_adds_no_element(platform: str, message: str) -> None:
    def tags(platform: str, message: str) -> list[str]:
        checks = (bad_check(message=message), warning(message))
        return [element.tag for element in parse_image(verify(verdict(platform, *checks))).iter()]

    assert tags(platform, message) == tags("linux/arm64", "m")
