from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.printable import escape_unprintable
from buildkit_tasks.report import to_html
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

# Markup of HTML and XML, and every code point.
MARKS = st.sampled_from(["<", ">", "&", '"', "'", "</div>", "<script>", "<!--", "-->", "]]>", "&lt;", "&#0;"])
SPECIAL = st.sampled_from("\x00\x1b\r\n\t\udc80\uffff\u202e")
ANY_TEXT = st.lists(MARKS | SPECIAL | st.text(st.characters(exclude_categories=()))).map("".join)


class PageReader(HTMLParser):
    """Read elements, attributes and texts as a browser does."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def page_texts(report: Report) -> list[str]:
    """Return the texts of a page that is parsed as XML."""
    root = ET.fromstring(to_html(report).encode())  # noqa: S314 - a document made here
    return [element.text or "" for element in root.iter()]


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
@example("</div><script>x</script>", "<!--", "\ud83d\ude00\x00")
def test_run_output_round_trips(stdout: str, stderr: str, platform: str) -> None:
    all_texts = page_texts(run(bad_run(platform, stdout=stdout, stderr=stderr)))
    for output in (stdout, stderr):
        assert not output or escape_unprintable(output) in all_texts


@given(ANY_TEXT.filter(bool), ANY_TEXT.filter(bool), ANY_TEXT.filter(bool), ANY_TEXT.filter(bool))
def test_checks_round_trip(message: str, name: str, path: str, warning_message: str) -> None:
    checks = (good_check(), bad_check(message=message, name=name, path=path), warning(warning_message))
    all_texts = page_texts(verify(verdict("linux/arm64", *checks)))
    assert {escape_unprintable(text) for text in (message, name, path, warning_message)} <= set(all_texts)


@given(ANY_TEXT.filter(str.strip), ANY_TEXT.filter(bool))
@example("<script>", '" onload="x')
def test_text_adds_no_markup(platform: str, message: str) -> None:
    def read_page(platform: str, message: str) -> PageReader:
        checks = (bad_check(message=message, path=message), warning(message))
        return PageReader(to_html(verify(verdict(platform, *checks))))

    assert read_page(platform, message).tags == read_page("linux/arm64", "m").tags


@given(ANY_TEXT.filter(bool))
def test_error_round_trips(error: str) -> None:
    assert escape_unprintable(error) in page_texts(stopped(error))
