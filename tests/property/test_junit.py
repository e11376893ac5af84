from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.printable import escape_unprintable
from buildkit_tasks.report import to_junit
from buildkit_tasks.report.model import Outcome, Report
from buildkit_tasks.report.run_labels import unique_labels
from tests.support.report_samples import bad_check, bad_run, good_run, on_cpu, run, stopped, verdict, verify

# Every code point, lone surrogates included, and the markup of XML.
SPECIAL = st.sampled_from("\x00\x1b\r\n\t<>&\"']\udc80\uffff")
ANY_TEXT = st.text(st.characters(exclude_categories=()) | SPECIAL)


def first_case(report: Report) -> ET.Element:
    # As bytes: a document with a lone surrogate cannot be encoded.
    root = ET.fromstring(to_junit(report).encode())  # noqa: S314 - a document made here
    return next(root.iter("testcase"))


@given(ANY_TEXT, ANY_TEXT)
@example("]]>", "a\r\nb\rc\x85\u2028")
@example("\ud83d\ude00", "\ufffe\U0001ffff")
def test_run_output_round_trips(stdout: str, stderr: str) -> None:
    case = first_case(run(bad_run("linux/arm64", Outcome.FAILED, stdout=stdout, stderr=stderr)))
    assert (case.findtext("system-out") or "") == escape_unprintable(stdout)
    assert (case.findtext("system-err") or "") == escape_unprintable(stderr)


@given(ANY_TEXT.filter(bool), ANY_TEXT.filter(bool), ANY_TEXT.filter(bool), ANY_TEXT.filter(bool))
def test_checks_round_trip(platform: str, name: str, message: str, path: str) -> None:
    case = first_case(verify(verdict(platform, bad_check(name=name, message=message, path=path))))
    assert case.attrib["name"] == escape_unprintable(platform)
    failure = case[0]
    assert failure.attrib == {"message": escape_unprintable(message), "type": escape_unprintable(name)}
    assert escape_unprintable(f"\npath: {path}\n") in (failure.text or "")


@given(st.lists(st.tuples(*[st.sampled_from("ab") | ANY_TEXT] * 3, st.booleans()), min_size=1))
@example([("p", "", "", True), ("p", "", "", True), ("p (2)", "", "", True)])
@example([("p", "x", "", True), ("p", "", "", True), ("p: x", "", "", True)])
@example([("p", "x", "c", True), ("p", "y", "d", False), ("p", "x", "", False), ("p", "x", "d", True)])
def test_run_names_are_unique(runs: list[tuple[str, str, str, bool]]) -> None:
    results = [
        on_cpu(cpu, replace(good_run(platform) if ok else bad_run(platform), command=command))
        for platform, command, cpu, ok in runs
    ]
    names = unique_labels(results)
    assert len(set(names)) == len(names)
    for result, name in zip(results, names, strict=True):
        assert name.startswith(result.platform)
        alone = [other.platform for other in results].count(result.platform) == 1
        assert name == result.platform or not alone
    root = ET.fromstring(to_junit(run(*results)).encode())  # noqa: S314 - a document made here
    case_names = [case.attrib["name"] for case in root.iter("testcase")]
    assert case_names == [escape_unprintable(name) or "run as a whole" for name in names]


@given(ANY_TEXT.filter(bool))
def test_error_round_trips(error: str) -> None:
    root = ET.fromstring(to_junit(stopped(error)).encode())  # noqa: S314 - a document made here
    element = root.find("testsuite[@name='arch-matrix']/testcase/error")
    assert element is not None
    assert element.attrib["message"] == escape_unprintable(error)
