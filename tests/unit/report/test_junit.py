from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from buildkit_tasks import report as renderers
from buildkit_tasks.report.model import Outcome, PlatformSetup, Report
from tests.support.report_samples import (
    TEN,
    TWO,
    bad_check,
    bad_reports,
    bad_run,
    build,
    good_reports,
    good_run,
    matrix,
    on_cpu,
    platform_setup,
    run,
    setup,
    stopped,
    three_commands,
    verdict,
    verify,
    warning,
)
from tests.unit.report.rendering import FAILED_ON_ONE_CPU, cases, suites


def test_warning_is_output() -> None:
    report = verify(
        verdict("linux/amd64"), verdict("linux/arm64", warning("look ]]> here"), warning("again"))
    )
    _, case = suites(report)["verify"]
    assert [element.tag for element in case] == ["system-out"]
    output = case.findtext("system-out") or ""
    assert output.startswith("warning: parity: look ]]> here\npath: /usr/bin/foo\n")
    assert "\n\nwarning: parity: again\n" in output
    assert suites(report)["verify"].attrib["failures"] == "0"


@pytest.mark.parametrize(
    ("outcome", "tag"),
    [
        (Outcome.FAILED, "failure"),
        (Outcome.TIMEOUT, "failure"),
        (Outcome.EMULATOR_CRASH, "error"),
        (Outcome.NOT_REGISTERED, "error"),
    ],
)
def test_emulator_fails_or_image(outcome: Outcome, tag: str) -> None:
    (case,) = cases(run(bad_run("linux/arm64", outcome)), "run")
    assert case[0].tag == tag


def test_any_character() -> None:
    (case,) = cases(verify(verdict("linux/arm64", replace(bad_check(), message="a\n\x00\ufffe"))), "verify")
    assert case[0].attrib["message"] == "a\n\\x00\\ufffe"


def test_single_run_has_platform_name() -> None:
    report = run(*(replace(on_cpu("x1", good_run(name)), command=f"say {name}") for name in TEN))
    assert [case.attrib["name"] for case in cases(report, "run")] == list(TEN)


def test_case_names_have_cpu() -> None:
    run_cases = cases(FAILED_ON_ONE_CPU, "run")
    assert [(case.attrib["name"], [child.tag for child in case]) for case in run_cases] == [
        ("linux/amd64 on max", ["system-out"]),
        ("linux/amd64 on qemu64", ["system-out"]),
        ("linux/arm/v6 on max", ["system-out"]),
        ("linux/arm/v6 on arm1176", ["failure", "system-err"]),
    ]
    assert [case.attrib["time"] for case in run_cases] == ["0.250", "0.250", "0.250", "0.500"]


def test_case_names_have_command() -> None:
    names = [case.attrib["name"] for case in cases(three_commands(), "run")]
    assert names == [f"{name}{suffix}" for name in TWO for suffix in ("", ": uname -m", ": /bin/true -x")]


def test_case_names_have_both() -> None:
    report = run(
        *(
            on_cpu(cpu, replace(good_run("linux/386"), command=command))
            for command in ("", "a b")
            for cpu in ("", "x1")
        )
    )
    assert [case.attrib["name"] for case in cases(report, "run")] == [
        "linux/386 on max", "linux/386 on x1", "linux/386 on max: a b", "linux/386 on x1: a b",
    ]  # fmt: skip


def test_equal_runs_are_numbered() -> None:
    report = run(
        good_run("linux/386"), bad_run("linux/386"), good_run("linux/386"), good_run("linux/386 (2)")
    )
    assert [case.attrib["name"] for case in cases(report, "run")] == [
        "linux/386", "linux/386 (3)", "linux/386 (4)", "linux/386 (2)",
    ]  # fmt: skip


def test_runner_property() -> None:
    steps = suites(replace(matrix("linux/amd64", "linux/arm/v6"), run=FAILED_ON_ONE_CPU))
    assert [child.attrib for child in steps["run"].iter("property")] == [
        {"name": "runner", "value": "sandbox"}
    ]
    assert not any(list(steps[name].iter("property")) for name in ("setup", "build", "verify"))


def test_left_out_platform() -> None:
    report = replace(matrix(), run=run(good_run("linux/amd64")))
    _, left_out = cases(report, "run")
    assert [element.tag for element in left_out] == ["failure"]
    assert left_out[0].attrib == {"message": "linux/arm64 was left out of run", "type": "left-out"}


def test_suite_per_step() -> None:
    steps = suites(matrix(*TEN))
    assert list(steps) == ["setup", "build", "verify", "run"]
    for name in steps:
        step_cases = cases(matrix(*TEN), name)
        assert [case.attrib["name"] for case in step_cases] == list(TEN)
        assert {case.attrib["classname"] for case in step_cases} == {f"buildkit_tasks.{name}"}


def test_failures_and_errors() -> None:
    report = run(
        good_run("linux/amd64"),
        bad_run("linux/arm64", Outcome.WRONG_ARCH),
        bad_run("linux/386", Outcome.TIMEOUT),
        bad_run("linux/s390x", Outcome.NOT_REGISTERED),
    )
    counts = {"tests": "4", "failures": "2", "errors": "1", "skipped": "0", "time": "1.750"}
    root = ET.fromstring(renderers.to_junit(report))  # noqa: S314 - a document made here
    for element in (root, root[0]):
        assert {name: element.attrib[name] for name in counts} == counts
    assert [case[0].tag for case in cases(report, "run")] == ["system-out", "failure", "failure", "error"]


ELEMENTS_OF_COUNTS = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}


@pytest.mark.parametrize("report", [*good_reports(), *bad_reports()])
def test_counts(report: Report) -> None:
    root = ET.fromstring(renderers.to_junit(report))  # noqa: S314 - a document made here
    for element in (root, *root):
        for count, tag in ELEMENTS_OF_COUNTS.items():
            assert int(element.attrib[count]) == len(list(element.iter(tag)))
    assert report.ok is not (int(root.attrib["failures"]) + int(root.attrib["errors"]) > 0)


def test_failure_element() -> None:
    checks = (bad_check(message="first"), bad_check(name="other", message="second"))
    case = suites(verify(verdict("linux/arm64", *checks)))["verify"][0]
    failure = case[0]
    assert len(case) == 1
    assert failure.attrib == {"message": "first", "type": "binary-machine"}
    assert "other: second" in (failure.text or "")


def test_missing_handler_is_error() -> None:
    case = suites(setup(PlatformSetup(platform="linux/arm64", native=False)))["setup"][0]
    assert case[0].tag == "error"
    assert case[0].attrib["type"] == "not-registered"


def test_broken_handler() -> None:
    broken = replace(platform_setup("linux/arm64"), runs=False)
    assert suites(setup(broken))["setup"][0][0].attrib["type"] == "does-not-run"


def test_output_and_time() -> None:
    case = suites(run(bad_run("linux/arm64", stdout="a\r\nb\u202e\x9b", stderr="c")))["run"][0]
    assert case.findtext("system-out") == "a\nb\\u202e\\x9b"
    assert case.findtext("system-err") == "c"
    assert case.attrib["time"] == "0.500"


def test_stopped_pipeline() -> None:
    steps = suites(stopped("the registry refused"))
    assert [len(steps["verify"].findall("testcase/skipped")), len(steps["run"].findall("*/skipped"))] == [
        2,
        2,
    ]
    error = steps["arch-matrix"].find("testcase/error")
    assert error is not None
    assert error.attrib["message"] == "the registry refused"
    assert "before the end of verify" in (error.text or "")


def test_build_time() -> None:
    assert suites(build())["build"].attrib["time"] == "41.250"
