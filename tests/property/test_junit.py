from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.report import to_junit
from buildkit_tasks.report.model import Outcome, Report
from buildkit_tasks.report.run_labels import unique_labels
from tests.support.report_samples import bad_check, bad_run, good_run, on_cpu, run, stopped, verdict, verify

# Every code point there is, the ones that no UTF-8 has among them, and what XML treats apart.
SPECIAL = st.sampled_from("\x00\x1b\r\n\t<>&\"']\udc80\uffff")
ANY_TEXT = st.text(st.characters(exclude_categories=()) | SPECIAL)


def legal(character: str) -> bool:
    """Notify what production Char of XML 1.0, section 2.2, allows."""
    code = ord(character)
    return (
        code in (0x9, 0xA, 0xD)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or 0x10000 <= code <= 0x10FFFF
    )


def expected(text: str) -> str:
    return "".join(each if legal(each) else each.encode("unicode_escape").decode() for each in text)


def only_case(report: Report) -> ET.Element:
    # As bytes: a document with a lone surrogate could not even be written to a file.
    root = ET.fromstring(to_junit(report).encode())  # noqa: S314 - a document made here
    return next(root.iter("testcase"))


@given(ANY_TEXT, ANY_TEXT)
@example("]]>", "a\r\nb\rc\x85\u2028")
@example("\ud83d\ude00", "\ufffe\U0001ffff")
def test_whatever_a_run_prints_is_read_back_from_the_document(stdout: str, stderr: str) -> None:
    case = only_case(run(bad_run("linux/arm64", Outcome.FAILED, stdout=stdout, stderr=stderr)))
    assert (case.findtext("system-out") or "") == expected(stdout)
    assert (case.findtext("system-err") or "") == expected(stderr)


@given(ANY_TEXT.filter(bool), ANY_TEXT.filter(bool), ANY_TEXT.filter(bool), ANY_TEXT.filter(bool))
def test_whatever_a_check_says_is_read_back_from_the_document(
    platform: str, name: str, message: str, path: str
) -> None:
    case = only_case(verify(verdict(platform, bad_check(name=name, message=message, path=path))))
    assert case.attrib["name"] == expected(platform)
    failure = case[0]
    assert failure.attrib == {"message": expected(message), "type": expected(name)}
    assert f"\npath: {expected(path)}\n" in (failure.text or "")


@given(st.lists(st.tuples(*[st.sampled_from("ab") | ANY_TEXT] * 3, st.booleans()), min_size=1))
@example([("p", "", "", True), ("p", "", "", True), ("p (2)", "", "", True)])
@example([("p", "x", "", True), ("p", "", "", True), ("p: x", "", "", True)])
@example([("p", "x", "c", True), ("p", "y", "d", False), ("p", "x", "", False), ("p", "x", "d", True)])
def test_each_run_has_a_name_of_its_own_that_begins_with_its_platform(
    runs: list[tuple[str, str, str, bool]],
) -> None:
    results = [
        on_cpu(cpu, replace(good_run(platform) if ok else bad_run(platform), command=command))
        for platform, command, cpu, ok in runs
    ]
    names = unique_labels(results)
    assert len(set(names)) == len(names)
    for result, name in zip(results, names, strict=True):
        assert name.startswith(result.platform)
        alone = [each.platform for each in results].count(result.platform) == 1
        assert name == result.platform or not alone
    root = ET.fromstring(to_junit(run(*results)).encode())  # noqa: S314 - a document made here
    shown = [case.attrib["name"] for case in root.iter("testcase")]
    assert shown == [expected(name) or "run as a whole" for name in names]


@given(ANY_TEXT.filter(bool))
def test_whatever_stopped_the_line_is_read_back_from_the_document(error: str) -> None:
    root = ET.fromstring(to_junit(stopped(error)).encode())  # noqa: S314 - a document made here
    found = root.find("testsuite[@name='arch-matrix']/testcase/error")
    assert found is not None
    assert found.attrib["message"] == expected(error)
