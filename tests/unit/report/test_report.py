from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import struct
import subprocess
import sys
import termios
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pytest

from buildkit_tasks import report as faces
from buildkit_tasks.errors import LimitExceeded, UsageError
from buildkit_tasks.report import github
from buildkit_tasks.report.model import (
    BuildResult,
    EmulatorSummary,
    ImagesReport,
    MatrixReport,
    Outcome,
    PlatformSetup,
    Report,
    RunReport,
    VerifyReport,
    to_document,
)
from buildkit_tasks.report.steps import list_steps
from buildkit_tasks.report.text import escape_unprintable, last_line, tail_lines, to_one_line
from tests.support.report_samples import (
    TEN,
    TWO,
    bad_check,
    bad_run,
    both_cpus,
    build,
    digest,
    every_bad_report,
    every_good_report,
    every_warning_report,
    good_check,
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def drawn(report: Report, *, colour: bool = False, width: int | None = None) -> str:
    page = io.StringIO()
    faces.print_table(report, page, colour=colour, width=width)
    return page.getvalue()


RENDERERS = [drawn, faces.to_json, faces.to_junit, faces.to_markdown, faces.to_html, faces.to_svg]
WITHOUT_BOUNDS = [faces.to_json, faces.to_junit, faces.to_markdown, faces.to_html]
FOR_PEOPLE = [drawn, faces.to_markdown, faces.to_html, faces.to_svg]
HOSTILE = "\x1b[2J\u202e::error::x ##[add-mask]y <b>|`*z*` @me\ud800"


def suites(report: Report) -> dict[str, ET.Element]:
    root = ET.fromstring(faces.to_junit(report).encode())  # noqa: S314 - a document made here
    return {suite.attrib["name"]: suite for suite in root}


def cases(report: Report, step: str) -> list[ET.Element]:
    """Give the cases of a step's suite, which has nothing else in it but a run's properties."""
    suite = suites(report)[step]
    assert {child.tag for child in suite} <= {"testcase", *(["properties"] if step == "run" else [])}
    return suite.findall("testcase")


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("│ linux", "| linux"))]


def half_bad() -> MatrixReport:
    return MatrixReport(
        setup=setup(),
        build=build(),
        verify=verify(verdict("linux/amd64"), verdict("linux/arm64", good_check(), bad_check())),
        run=run(good_run("linux/amd64"), bad_run("linux/arm64", stdout="one\ntwo\n", stderr="why\n")),
    )


# What holds for every renderer


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("error", ["the registry refused: 401", "no engine answers\nstart one"])
def test_every_renderer_shows_what_was_reached_and_the_error_that_stopped_it(
    render: Callable[[Report], str], error: str
) -> None:
    text = render(stopped(error))
    for said in [*TWO, *error.split("\n"), "dist/hello.tar" if render is not faces.to_junit else "build"]:
        assert said in text


@pytest.mark.parametrize("report", every_bad_report())
def test_a_report_that_does_not_hold_has_a_problem_to_show(report: Report) -> None:
    assert any(case.problems for step in list_steps(report) for case in step.rows)


@pytest.mark.parametrize("report", every_bad_report())
def test_a_failure_is_readable_in_words_without_colour(report: Report) -> None:
    assert "\nFAILED " in drawn(report)
    assert ": FAILED\n" in faces.to_markdown(report)
    assert "<h2>What failed</h2>\n<details" in faces.to_html(report)
    assert ">FAILED " in faces.to_svg(report)


@pytest.mark.parametrize("report", [*every_good_report(), *every_bad_report(), *every_warning_report()])
def test_a_report_holds_if_and_only_if_it_has_no_problem(report: Report) -> None:
    assert report.ok is not any(case.problems for step in list_steps(report) for case in step.rows)


@pytest.mark.parametrize("report", every_good_report())
def test_a_report_that_holds_has_no_word_of_failure(report: Report) -> None:
    assert not any(case.problems for step in list_steps(report) for case in step.rows)
    for render in FOR_PEOPLE:
        text = render(report)
        assert "FAILED" not in text
        assert not {"WARNING", "warning", "Warnings"} & set(
            re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).split()
        )
        assert f"2 of 2 {'images' if isinstance(report, ImagesReport) else 'platforms'}" in text


@pytest.mark.parametrize("render", [drawn, faces.to_markdown, faces.to_junit, faces.to_html])
def test_each_fact_of_a_failing_check_is_shown_whole(render: Callable[[Report], str]) -> None:
    check = bad_check(message="m" * 500, expected="e" * 200, actual="a" * 200, path="/p" * 100)
    text = render(verify(verdict("linux/arm64", check)))
    for fact in (check.message, check.expected, check.actual, check.path, check.layer):
        assert fact in text


@pytest.mark.parametrize("render", RENDERERS)
def test_of_several_failing_checks_each_is_shown(render: Callable[[Report], str]) -> None:
    text = render(verify(verdict("linux/arm64", bad_check(message="first"), bad_check(message="second"))))
    assert "first" in text
    assert "second" in text


@pytest.mark.parametrize("render", [drawn, faces.to_markdown, faces.to_junit])
def test_the_output_and_the_emulator_of_a_failing_run_are_shown(render: Callable[[Report], str]) -> None:
    text = render(run(bad_run("linux/s390x", Outcome.EMULATOR_CRASH, stdout="out", stderr="qemu: uncaught")))
    for said in ("emulator-crash", "exit code: 1", "out", "qemu: uncaught", "/usr/bin/qemu-s390x 10.0.2"):
        assert said in text


@pytest.mark.parametrize("render", [drawn, faces.to_markdown, faces.to_junit])
def test_a_check_that_found_nothing_says_so(render: Callable[[Report], str]) -> None:
    text = render(verify(verdict("linux/arm64", bad_check(message="", actual=""))))
    assert "expected arm64, found (none)" in text
    assert "actual: (none)" in text


@pytest.mark.parametrize("render", [drawn, faces.to_json, faces.to_markdown, faces.to_html, faces.to_svg])
def test_no_text_of_an_image_commands_a_terminal_or_a_runner(render: Callable[[Report], str]) -> None:
    text = render(run(bad_run(HOSTILE, stdout=f"::add-mask::x\n{HOSTILE}", stderr=HOSTILE, message=HOSTILE)))
    assert not {"\x1b", "\ud800"} & set(text)
    assert "##[" not in text
    if render is not faces.to_json:
        assert "\u202e" not in text


# Warnings


@pytest.mark.parametrize("report", every_warning_report())
def test_a_report_with_warnings_holds_and_says_how_many_there_are(report: Report) -> None:
    assert report.ok
    assert not any(case.problems for step in list_steps(report) for case in step.rows)
    for render in FOR_PEOPLE:
        assert "2 warnings." in render(report)
        assert "FAILED" not in render(report)


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("report", every_warning_report())
def test_every_renderer_shows_what_a_warning_says(render: Callable[[Report], str], report: Report) -> None:
    assert "linux/arm64 lacks /usr/bin/foo that linux/amd64 has" in render(report)


def test_a_cell_counts_warnings_and_a_block_below_the_table_has_their_words() -> None:
    report = verify(
        verdict("linux/amd64", warning("one")), verdict("linux/arm64", warning("a\nb"), warning("c"))
    )
    text = drawn(report)
    assert "│ ok, 1 warning " in rows(text)[0]
    assert "│ ok, 2 warnings │" in rows(text)[1]
    assert "  2 of 2 platforms verified, 3 warnings.\n" in text
    assert "\nWARNING verify linux/amd64 parity\n  | one\n" in text
    assert text.endswith("\nWARNING verify linux/arm64 parity\n  | a\n  | b\n  | c\n")


def test_warnings_are_of_a_third_colour() -> None:
    report = verify(verdict("linux/amd64"), verdict("linux/arm64", warning()))
    text = drawn(report, colour=True)
    for said in (
        "ok, 1 warning",
        "  2 of 2 platforms verified, 1 warning.",
        "WARNING verify linux/arm64 parity",
    ):
        assert f"\x1b[33m{said}" in text
    assert "\x1b[32mok " in text
    for text in (faces.to_html(report), faces.to_svg(report)):
        assert 'warning">ok, 1 warning<' in text
        assert 'good">ok<' in text


def test_a_failing_platform_is_shown_as_failing_and_its_warnings_below() -> None:
    report = verify(verdict("linux/amd64", warning(), bad_check(message="wrong")), verdict("linux/arm64"))
    text = drawn(report)
    assert "│ FAILED wrong │" in rows(text)[0]
    assert "1 of 2 platforms verified, 1 warning. FAILED: linux/amd64 (verify)." in text
    assert text.index("\nFAILED verify linux/amd64") < text.index("\nWARNING verify linux/amd64 parity")
    assert faces.to_markdown(report).startswith("## verify: FAILED\n")


def test_a_matrix_says_with_how_many_warnings_its_platforms_hold() -> None:
    report = replace(matrix(), verify=verify(*(verdict(name, warning()) for name in TWO)))
    assert "  2 of 2 platforms passed: built, verified and run, with 2 warnings.\n" in drawn(report)
    assert faces.to_markdown(report).startswith("## arch-matrix: ok, 2 warnings\n")


def test_a_warning_of_many_lines_is_cut_on_a_terminal_and_whole_in_the_files() -> None:
    report = verify(verdict("linux/arm64", warning("\n".join(f"line {n}." for n in range(100)))))
    text = drawn(report)
    assert "line 9." in text
    assert "line 10." not in text
    assert "(90 more lines: a --report file has them all)" in text
    for render in WITHOUT_BOUNDS:
        assert "line 99." in render(report)


def test_junit_keeps_a_case_with_a_warning_passed_and_puts_it_into_its_output() -> None:
    report = verify(
        verdict("linux/amd64"), verdict("linux/arm64", warning("look ]]> here"), warning("again"))
    )
    _, case = suites(report)["verify"]
    assert [element.tag for element in case] == ["system-out"]
    said = case.findtext("system-out") or ""
    assert said.startswith("warning: parity: look ]]> here\npath: /usr/bin/foo\n")
    assert "\n\nwarning: parity: again\n" in said
    assert suites(report)["verify"].attrib["failures"] == "0"


# Very many problems: an image can have a thousand wrong binaries


def thousand_wrong() -> VerifyReport:
    checks = [bad_check(name="binary", path=f"/bin/{n}.", message=f"wrong {n}.") for n in range(500)]
    warnings = [warning(f"odd {n}.") for n in range(500)]
    return verify(verdict("linux/amd64"), verdict("linux/arm64", *checks, *warnings))


@pytest.mark.parametrize("render", [drawn, faces.to_svg])
def test_a_screen_shows_the_first_twenty_problems_of_a_platform_and_counts_the_others(
    render: Callable[[Report], str],
) -> None:
    text = render(thousand_wrong())
    for word in ("wrong", "odd"):
        assert f"{word} 19." in text
        assert f"{word} 20." not in text
    assert len(re.findall(r"\(480 more.*a --report file.* has them all\)", text)) == 2
    assert "1 of 2 platforms verified, 500 warnings. FAILED: linux/arm64 (verify)." in text


@pytest.mark.parametrize("render", WITHOUT_BOUNDS)
def test_every_other_report_file_has_all_problems(render: Callable[[Report], str]) -> None:
    text = render(thousand_wrong())
    assert all(f"wrong {n}." in text and f"/bin/{n}." in text and f"odd {n}." in text for n in range(500))


def test_github_gets_twenty_annotations_of_a_kind_and_one_that_counts_the_others() -> None:
    commands = faces.report_to_github(thousand_wrong(), {"GITHUB_ACTIONS": "true"}, io.StringIO())
    for name in ("error", "warning"):
        mine = [command for command in commands if command.startswith(f"::{name} ")]
        assert len(mine) == 21
        assert mine[-1] == f"::{name} title=verify linux/arm64::480 more: a --report file has them all"


# Several runs of one platform: on two CPUs, with several commands

LACKING = both_cpus(Outcome.ILLEGAL_INSTRUCTION)


def table_rows(report: Report) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows(drawn(report))]


def test_one_run_of_a_platform_has_the_platforms_name_alone_whatever_it_ran_on() -> None:
    report = run(*(replace(on_cpu("x1", good_run(name)), command=f"say {name}") for name in TEN))
    assert [case.attrib["name"] for case in cases(report, "run")] == list(TEN)


def test_runs_on_two_cpus_are_two_cases_named_by_them() -> None:
    found = cases(LACKING, "run")
    assert [(case.attrib["name"], [child.tag for child in case]) for case in found] == [
        ("linux/amd64 on max", ["system-out"]),
        ("linux/amd64 on qemu64", ["system-out"]),
        ("linux/arm/v6 on max", ["system-out"]),
        ("linux/arm/v6 on arm1176", ["failure", "system-err"]),
    ]
    assert [case.attrib["time"] for case in found] == ["0.250", "0.250", "0.250", "0.500"]


def test_several_commands_are_cases_named_by_them_and_the_images_own_by_its_platform() -> None:
    names = [case.attrib["name"] for case in cases(three_commands(), "run")]
    assert names == [f"{name}{told}" for name in TWO for told in ("", ": uname -m", ": /bin/true -x")]


def test_commands_on_two_cpus_are_named_by_both() -> None:
    report = run(
        *(
            on_cpu(cpu, replace(good_run("linux/386"), command=each))
            for each in ("", "a b")
            for cpu in ("", "x1")
        )
    )
    assert [case.attrib["name"] for case in cases(report, "run")] == [
        "linux/386 on max", "linux/386 on x1", "linux/386 on max: a b", "linux/386 on x1: a b",
    ]  # fmt: skip


def test_runs_that_nothing_tells_apart_are_numbered() -> None:
    report = run(
        good_run("linux/386"), bad_run("linux/386"), good_run("linux/386"), good_run("linux/386 (2)")
    )
    assert [case.attrib["name"] for case in cases(report, "run")] == [
        "linux/386", "linux/386 (3)", "linux/386 (4)", "linux/386 (2)",
    ]  # fmt: skip


def test_junit_names_the_runner_of_the_runs_and_of_nothing_else() -> None:
    found = suites(replace(matrix("linux/amd64", "linux/arm/v6"), run=LACKING))
    assert [child.attrib for child in found["run"].iter("property")] == [
        {"name": "runner", "value": "sandbox"}
    ]
    assert not any(list(found[name].iter("property")) for name in ("setup", "build", "verify"))


def test_the_table_has_a_row_for_each_cpu_and_says_which_it_is() -> None:
    assert [row[:4] for row in table_rows(LACKING)] == [
        ["linux/amd64", "native", "max", "ok: Hello from amd64"],
        ["linux/amd64", "qemu-amd64 10.0.2", "qemu64", "ok: Hello from amd64"],
        ["linux/arm/v6", "qemu-arm 10.0.2", "max", "ok: Hello from arm"],
        ["linux/arm/v6", "qemu-arm 10.0.2", "arm1176", "FAILED illegal-instruction: qemu: uncaught"],
    ]


def test_the_table_has_a_row_for_each_command_and_says_which_it_is() -> None:
    assert [row[2] for row in table_rows(three_commands())] == [
        "(the image's own)", "uname -m", "/bin/true -x",
    ] * 2  # fmt: skip
    assert "CPU" not in drawn(three_commands())


def test_one_old_cpu_is_named_and_one_command_for_all_is_not() -> None:
    report = run(replace(on_cpu("arm1176", good_run("linux/arm/v6")), command="uname -m"))
    assert table_rows(report)[0][2] == "arm1176"
    assert "uname" not in drawn(report)
    assert "CPU" not in drawn(run(replace(good_run("linux/arm/v6"), command="uname -m")))


def test_a_matrix_row_for_each_run_says_once_what_was_built_and_verified() -> None:
    report = replace(matrix("linux/amd64", "linux/arm/v6"), run=LACKING)
    found = table_rows(report)
    assert [(row[0], row[1], bool(row[2]), row[3], row[4]) for row in found] == [
        ("linux/amd64", "native", True, "ok", "max"),
        ("linux/amd64", "qemu-amd64 10.0.2", False, "", "qemu64"),
        ("linux/arm/v6", "qemu-arm 10.0.2", True, "ok", "max"),
        ("linux/arm/v6", "qemu-arm 10.0.2", False, "", "arm1176"),
    ]


def test_a_platform_that_was_not_run_has_dashes_among_several_runs() -> None:
    report = replace(matrix("linux/amd64", "linux/arm/v6", "linux/386"), run=LACKING)
    assert table_rows(report)[-1][4:] == ["-", "-", "-"]
    assert "linux/386 (left out of run)" in drawn(report)


@pytest.mark.parametrize("render", FOR_PEOPLE)
@pytest.mark.parametrize("report", [LACKING, replace(matrix("linux/amd64", "linux/arm/v6"), run=LACKING)])
def test_what_passed_on_one_cpu_and_not_on_the_other_is_said_plainly(
    render: Callable[[Report], str], report: Report
) -> None:
    text = render(report)
    assert "linux/arm/v6: passed on max, illegal-instruction on arm1176" in text
    assert "linux/amd64: passed on" not in text
    assert "run linux/arm/v6 on arm1176" in text
    assert "FAILED: linux/arm/v6 (run on arm1176)." in text
    assert "run by: sandbox" in text
    assert "seconds for each platform: linux/amd64 0.50, linux/arm/v6 0.75" in text


def test_a_run_that_fails_on_both_cpus_or_passes_on_both_is_no_difference() -> None:
    both = [on_cpu(cpu, bad_run("linux/386")) for cpu in ("", "x1")]
    for report in (both_cpus(), run(*both)):
        assert ": passed on" not in drawn(report)
        assert ": failed on" not in drawn(report)
    assert "0 of 1 platforms ran as expected. FAILED: linux/386 (run)." in drawn(run(*both))


def test_a_difference_names_its_command() -> None:
    report = run(
        *(replace(good_run("linux/386"), command=each) for each in ("a", "b")),
        replace(on_cpu("x1", bad_run("linux/386")), command="b"),
    )
    assert "  linux/386: b: passed on max, failed on x1\n" in drawn(report)


def test_the_closing_line_says_which_of_a_platforms_runs_failed() -> None:
    bad = [replace(bad_run("linux/arm64"), command=each) for each in ("x", "y")]
    assert "FAILED: linux/arm64 (run: x)." in drawn(three_commands(bad[0]))
    assert "FAILED: linux/arm64 (run: x and 1 more)." in drawn(three_commands(*bad))
    long = replace(bad[0], command="z" * 500)
    assert f"FAILED: linux/arm64 (run: {'z' * 55}...)." in drawn(three_commands(long))


@pytest.mark.parametrize("render", [*FOR_PEOPLE, faces.to_junit])
def test_a_failing_runs_command_is_shown(render: Callable[[Report], str]) -> None:
    assert "command: uname -m" in re.sub(
        "</dt><dd>", ": ", render(run(replace(bad_run("linux/386"), command="uname -m")))
    )


def test_an_annotation_names_the_cpu_and_the_command() -> None:
    report = run(*(on_cpu(cpu, replace(bad_run("linux/386"), command=f"a:b {cpu}")) for cpu in ("", "x1")))
    commands = faces.report_to_github(report, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert [command.split("::")[1] for command in commands] == [
        "error title=run linux/386 on max%3A a%3Ab  failed",
        "error title=run linux/386 on x1%3A a%3Ab x1 failed",
    ]  # fmt: skip


@pytest.mark.parametrize("render", [drawn, faces.to_json, faces.to_markdown, faces.to_html, faces.to_svg])
def test_neither_command_nor_cpu_nor_output_of_several_runs_commands_a_terminal_or_a_runner(
    render: Callable[[Report], str],
) -> None:
    bad = bad_run(HOSTILE, stdout=HOSTILE, stderr=HOSTILE, message=HOSTILE)
    good = good_run(HOSTILE, stdout=HOSTILE)
    results = [
        on_cpu(f"{HOSTILE}{n}", replace(each, command=f"{HOSTILE}{n}"))
        for n in (1, 2)
        for each in (bad, good)
    ]
    report = run(*(replace(result, runner=HOSTILE) for result in results))
    for text in (render(report), render(replace(matrix(HOSTILE), run=report))):
        assert not {"\x1b", "\ud800"} & set(text)
        assert "##[" not in text
        if render is not faces.to_json:
            assert "\u202e" not in text
        if render is faces.to_html:
            assert "<b>" not in text
        if render is faces.to_markdown:
            assert not re.search(r"(?m)^\|.*[<`]", text)


def test_no_annotation_of_several_runs_is_more_than_one_line() -> None:
    report = run(
        *(
            on_cpu(f"{n}\n::error::x", replace(bad_run(HOSTILE, stdout=HOSTILE), command="\n::x"))
            for n in (1, 2)
        )
    )
    stream = io.StringIO()
    commands = faces.report_to_github(report, {"GITHUB_ACTIONS": "true"}, stream)
    assert stream.getvalue().count("\n") == len(commands) == 2
    assert not {"\x1b", "\u202e"} & set(stream.getvalue())


# What a matrix must not pass over in silence


def test_a_platform_that_a_step_left_out_is_a_failure_in_junit() -> None:
    report = replace(matrix(), run=run(good_run("linux/amd64")))
    _, absent = cases(report, "run")
    assert [element.tag for element in absent] == ["failure"]
    assert absent[0].attrib == {"message": "linux/arm64 was left out of run", "type": "left-out"}


def test_a_platform_that_failed_is_not_said_to_be_left_out_as_well() -> None:
    extra = verdict("linux/s390x", bad_check(name="expected", message="not expected"))
    report = replace(matrix(), verify=verify(*map(verdict, TWO), extra))
    problems = [
        problem.kind for step in list_steps(report) for case in step.rows for problem in case.problems
    ]
    assert problems == ["expected"]
    assert "2 of 3 platforms passed. FAILED: linux/s390x (verify)." in drawn(report)


def test_a_platform_of_which_nothing_was_checked_has_not_been_verified() -> None:
    report = verify(verdict("linux/amd64"), replace(verdict("linux/arm64"), checks=()))
    assert "│ FAILED nothing was checked for linux/arm64 │" in rows(drawn(report))[1]
    assert "1 of 2 platforms verified. FAILED: linux/arm64 (verify)." in drawn(report)


# The table


def test_the_matrix_has_one_row_for_each_of_ten_platforms_and_a_closing_line() -> None:
    text = drawn(matrix(*TEN))
    assert [row.split()[1] for row in rows(text)] == list(TEN)
    assert text.endswith("  10 of 10 platforms passed: built, verified and run.\n")


def test_a_matrix_row_says_how_it_runs_and_what_was_built_verified_and_printed() -> None:
    native, emulated = (row.split("│")[1:-1] for row in rows(drawn(matrix())))
    short = digest("linux/amd64").removeprefix("sha256:")[:12]
    assert [cell.strip() for cell in native] == [
        "linux/amd64", "native", short, "ok", "ok: Hello from amd64", "0.25",
    ]  # fmt: skip
    assert emulated[1].strip() == "qemu-aarch64 10.0.2"


def test_a_matrix_row_names_the_first_check_that_failed_and_the_outcome_with_the_last_line() -> None:
    report = replace(
        half_bad(),
        verify=verify(
            verdict("linux/amd64"),
            verdict("linux/arm64", good_check(), bad_check(message="first"), bad_check(message="second")),
        ),
    )
    good, bad = rows(drawn(report))
    assert "FAILED" not in good
    assert "FAILED first" in bad
    assert "FAILED failed: two" in bad


def test_the_closing_line_says_which_platforms_failed_and_where() -> None:
    assert "  1 of 2 platforms passed. FAILED: linux/arm64 (verify).\n" in drawn(half_bad())


def test_the_closing_line_says_where_the_line_stopped() -> None:
    assert "  0 of 2 platforms passed. Stopped before verify: refused\n" in drawn(stopped("refused\nmore"))


def test_a_platform_that_a_step_left_out_does_not_hold() -> None:
    report = replace(matrix(), run=run(good_run("linux/amd64")))
    assert "1 of 2 platforms passed. FAILED: linux/arm64 (left out of run)." in drawn(report)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_entries_for_one_platform_a_failing_one_is_shown(order: int) -> None:
    both = (verdict("linux/arm64"), verdict("linux/arm64", bad_check(message="the other")))
    report = replace(matrix("linux/arm64"), verify=verify(*both[::order]))
    assert "FAILED the other" in rows(drawn(report))[0]
    assert "0 of 1 platforms passed" in drawn(report)


def test_a_platform_that_only_the_verification_found_has_a_row() -> None:
    report = replace(matrix(), verify=verify(*map(verdict, (*TWO, "linux/s390x"))))
    assert [row.split()[1] for row in rows(drawn(report))] == [*TWO, "linux/s390x"]


def test_a_platform_without_a_handler_is_shown_as_not_registered() -> None:
    text = drawn(setup(PlatformSetup(platform="linux/arm64", native=False, message="do this")))
    assert "not registered" in rows(text)[0]
    assert "FAILED do this" in rows(text)[0]
    assert "FAILED setup linux/arm64 not-registered" in text


def test_without_a_setup_the_matrix_says_what_the_run_went_through() -> None:
    report = replace(matrix(), setup=None)
    native, emulated = rows(drawn(report))
    assert "native" in native
    assert "qemu-aarch64 10.0.2" in emulated


def test_an_emulated_run_whose_emulator_is_not_known_is_not_called_native() -> None:
    result = replace(good_run("linux/arm64"), emulator=None)
    assert "│ emulated" in rows(drawn(run(result)))[0]
    assert "│ native" in rows(drawn(run(good_run("linux/amd64"))))[0]


def test_a_long_line_is_cut_in_its_cell_with_dots_that_show_it() -> None:
    row = rows(drawn(run(good_run("linux/arm64", stdout="x" * 100))))[0]
    assert f"ok: {'x' * 41}..." in row


def test_a_long_output_of_a_failing_run_says_how_much_stands_elsewhere() -> None:
    text = drawn(run(bad_run("linux/arm64", stdout="\n".join(f"line {n}." for n in range(100)))))
    assert "(60 lines before these: a --report file has them all)" in text
    assert "line 59." not in text
    assert "line 60." in text


def test_brackets_in_an_output_are_not_taken_for_styles() -> None:
    said = "[red]x[/red] :tada:"
    assert f"ok: {said}" in drawn(run(good_run("linux/arm64", stdout=said)))
    assert f"\n  | {said}\n" in drawn(run(bad_run("linux/arm64", message=said)))
    assert f"Stopped before verify: {said}\n" in drawn(stopped(said))


def test_colour_is_used_only_when_asked_for() -> None:
    assert "\x1b[32mok" in drawn(matrix(), colour=True)
    assert "\x1b[1;31mFAILED" in drawn(half_bad(), colour=True)
    assert "\x1b" not in drawn(half_bad())


def test_what_is_no_terminal_gets_each_row_in_one_line() -> None:
    report = run(*(good_run(name, stdout="w " * 60) for name in TEN))
    assert len(rows(drawn(report))) == len([line for line in drawn(report).splitlines() if "│" in line]) - 1


def test_a_narrow_width_folds_the_rows_and_keeps_their_words() -> None:
    text = drawn(matrix(*TEN), width=90)
    table = [line for line in text.splitlines() if line.startswith("│")]
    assert max(map(len, table)) <= 90
    assert "linux/mips64le" in text


def test_each_line_of_a_folded_table_has_an_edge_so_that_no_line_is_a_workflow_command() -> None:
    text = drawn(run(good_run("::error::platform", stdout="x " * 30 + "::add-mask::x")), width=70)
    assert "::error::platform" in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_no_line_of_a_failure_is_a_workflow_command() -> None:
    command = "::stop-commands::x"
    report = run(bad_run(f"a\n{command}", stdout=f"a\n {command}", stderr=command, message=f"\n{command}"))
    text = drawn(report)
    assert text.count(command) >= 4
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_a_file_whose_encoding_lacks_a_character_still_gets_the_table() -> None:
    raw = io.BytesIO()
    page = io.TextIOWrapper(raw, encoding="ascii")
    faces.print_table(run(good_run("linux/arm64", stdout="grüße")), page, colour=False)
    text = raw.getvalue().decode("ascii")
    assert "ok: gr\\xfc\\xdfe" in text
    assert "| linux/arm64 |" in text


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """Give a terminal of 80 columns."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # What is written must be read, or a full terminal would block the writer.
    with os.fdopen(master, "rb", buffering=0), os.fdopen(slave, "w", encoding="utf-8") as file:
        yield file


def test_a_terminals_own_width_is_used(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    from buildkit_tasks.report import terminal as table

    monkeypatch.delenv("CI", raising=False)
    assert table._terminal_width(terminal) == 80
    monkeypatch.setenv("CI", "true")
    assert table._terminal_width(terminal) >= 120


def test_colour_is_wanted_on_a_terminal_outside_ci_unless_refused(terminal: TextIO) -> None:
    assert faces.needs_colour(terminal, {})
    assert not faces.needs_colour(terminal, {"CI": "true"})
    assert not faces.needs_colour(terminal, {"NO_COLOR": "1"})
    assert not faces.needs_colour(io.StringIO(), {})


# JSON


@pytest.mark.parametrize("report", [*every_good_report(), *every_bad_report()])
def test_json_is_the_document_in_its_own_order(report: Report) -> None:
    text = faces.to_json(report)
    assert json.loads(text) == to_document(report)
    assert list(json.loads(text)) == list(to_document(report))
    assert text.endswith("}\n")
    assert text.startswith('{\n  "schema_version": 1,\n')


def test_json_keeps_every_character_but_lone_surrogates() -> None:
    said = 'é "\\ \x00\x1b \u2028 😀 ##[x] #[ ##'
    text = faces.to_json(run(good_run("linux/arm64", stdout=f"{said}\udc80")))
    assert json.loads(text.encode())["results"][0]["stdout"] == f"{said}\ufffd"


# JUnit


def test_junit_has_a_suite_for_each_step_with_a_case_for_each_platform() -> None:
    found = suites(matrix(*TEN))
    assert list(found) == ["setup", "build", "verify", "run"]
    for name in found:
        mine = cases(matrix(*TEN), name)
        assert [case.attrib["name"] for case in mine] == list(TEN)
        assert {case.attrib["classname"] for case in mine} == {f"buildkit_tasks.{name}"}


def test_junit_counts_failures_and_errors_apart() -> None:
    report = run(
        good_run("linux/amd64"),
        bad_run("linux/arm64", Outcome.WRONG_ARCH),
        bad_run("linux/386", Outcome.TIMEOUT),
        bad_run("linux/s390x", Outcome.NOT_REGISTERED),
    )
    counts = {"tests": "4", "failures": "2", "errors": "1", "skipped": "0", "time": "1.750"}
    root = ET.fromstring(faces.to_junit(report))  # noqa: S314 - a document made here
    for element in (root, root[0]):
        assert {name: element.attrib[name] for name in counts} == counts
    assert [case[0].tag for case in cases(report, "run")] == ["system-out", "failure", "failure", "error"]


COUNTED = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}


@pytest.mark.parametrize("report", [*every_good_report(), *every_bad_report()])
def test_junit_counts_are_those_of_its_elements(report: Report) -> None:
    root = ET.fromstring(faces.to_junit(report))  # noqa: S314 - a document made here
    for element in (root, *root):
        for count, tag in COUNTED.items():
            assert int(element.attrib[count]) == len(list(element.iter(tag)))
    assert report.ok is not (int(root.attrib["failures"]) + int(root.attrib["errors"]) > 0)


def test_a_junit_failure_has_the_first_message_its_kind_and_every_problem() -> None:
    checks = (bad_check(message="first"), bad_check(name="other", message="second"))
    case = suites(verify(verdict("linux/arm64", *checks)))["verify"][0]
    failure = case[0]
    assert len(case) == 1
    assert failure.attrib == {"message": "first", "type": "binary-machine"}
    assert "other: second" in (failure.text or "")


def test_a_platform_that_is_not_set_up_is_an_error_and_not_a_failure() -> None:
    case = suites(setup(PlatformSetup(platform="linux/arm64", native=False)))["setup"][0]
    assert case[0].tag == "error"
    assert case[0].attrib["type"] == "not-registered"


def test_a_registered_handler_that_does_not_run_is_told_from_a_missing_one() -> None:
    broken = replace(platform_setup("linux/arm64"), runs=False)
    assert suites(setup(broken))["setup"][0][0].attrib["type"] == "does-not-run"


def test_junit_has_what_a_run_printed_and_how_long_it_took() -> None:
    case = suites(run(bad_run("linux/arm64", stdout="a\r\nb", stderr="c")))["run"][0]
    assert case.findtext("system-out") == "a\r\nb"
    assert case.findtext("system-err") == "c"
    assert case.attrib["time"] == "0.500"


def test_junit_of_a_stopped_line_skips_what_was_not_reached_and_errs_once() -> None:
    found = suites(stopped("the registry refused"))
    assert [len(found["verify"].findall("testcase/skipped")), len(found["run"].findall("*/skipped"))] == [
        2,
        2,
    ]
    error = found["arch-matrix"].find("testcase/error")
    assert error is not None
    assert error.attrib["message"] == "the registry refused"
    assert "before verify" in (error.text or "")


def test_junit_gives_the_time_of_a_build_to_its_suite() -> None:
    assert suites(build())["build"].attrib["time"] == "41.250"


# Files


def test_each_ending_gets_its_format(tmp_path: Path) -> None:
    writers = {
        "a.json": faces.to_json,
        "new/folders/b.XML": faces.to_junit,
        "c.md": faces.to_markdown,
        "d.html": faces.to_html,
        "e.svg": faces.to_svg,
    }
    faces.write_reports(matrix(), [tmp_path / name for name in writers])
    for name, writer in writers.items():
        assert (tmp_path / name).read_text() == writer(matrix())


@pytest.mark.parametrize("name", ["r.htm", "r.png", "r.txt", "r", "json", ".json", "html", ".svg"])
def test_an_ending_that_is_not_known_is_refused_before_any_file_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.json, \.xml, \.md, \.html, \.svg") as caught:
        faces.write_reports(matrix(), [tmp_path / "good.json", tmp_path / name])
    assert name in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_paths_can_be_checked_before_there_is_a_report(tmp_path: Path) -> None:
    assert faces.check_report_paths(["new/a.json", Path("b.md")]) == (Path("new/a.json"), Path("b.md"))
    with pytest.raises(UsageError, match=r"b\.pdf"):
        faces.check_report_paths(["a.json", "b.pdf"])
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        faces.check_report_paths([tmp_path / "folder.md"])


def test_a_report_in_a_place_that_is_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="was not written"):
        faces.write_reports(matrix(), [tmp_path / "file" / "r.json"])


def test_a_full_disk_leaves_the_old_report_whole_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "r.json"
    old.write_text("old")

    def full(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LimitExceeded, match="No space left"):
        faces.write_reports(matrix(), [old])
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_new_report_takes_the_old_ones_place_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with path.open() as reader:
        faces.write_reports(matrix(), [path])
        assert reader.read() == "old"
    assert json.loads(path.read_text())["ok"] is True
    assert list(tmp_path.iterdir()) == [path]


# GitHub Actions


def test_nothing_is_announced_outside_github_actions(tmp_path: Path) -> None:
    summary, stream = tmp_path / "summary", io.StringIO()
    environ = {"GITHUB_STEP_SUMMARY": str(summary)}
    assert faces.report_to_github(half_bad(), environ, stream) == ()
    assert not summary.exists()
    assert stream.getvalue() == ""


def in_actions(summary: Path) -> dict[str, str]:
    return {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}


def test_the_markdown_is_appended_to_the_steps_summary(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("before")
    assert faces.report_to_github(matrix(), in_actions(summary), io.StringIO()) == ()
    assert summary.read_text() == f"before\n{faces.to_markdown(matrix())}"


def test_each_failure_becomes_an_annotation(tmp_path: Path) -> None:
    stream = io.StringIO()
    commands = faces.report_to_github(half_bad(), in_actions(tmp_path / "s"), stream)
    assert stream.getvalue().splitlines() == list(commands)
    first, second = commands
    assert first.startswith("::error title=verify linux/arm64 binary-machine::the entry point is for amd64")
    assert "%0Aexpected: arm64%0Aactual: amd64%0Apath: /hello%0A" in first
    assert second.startswith("::error title=run linux/arm64 failed::it printed something else%0A")


def test_each_warning_becomes_an_annotation_of_its_own_kind() -> None:
    report = verify(verdict("linux/amd64"), verdict("linux/arm64", warning("a\nb")))
    (command,) = faces.report_to_github(report, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert command.startswith("::warning title=verify linux/arm64 parity::a%0Ab%0Apath: /usr/bin/foo%0A")


def test_an_annotation_is_escaped_as_github_reads_it() -> None:
    report = stopped("100%0A\r\nnext: this, that")
    platform = verify(verdict("a:b,c%\n", bad_check()))
    (error,) = faces.report_to_github(report, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert error == "::error title=arch-matrix stopped::100%250A%0Anext: this, that%0Astopped: before verify"
    (error,) = faces.report_to_github(platform, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert error.startswith("::error title=verify a%3Ab%2Cc%25%0A binary-machine::the entry")


def test_annotations_go_to_stderr_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    faces.report_to_github(stopped("refused"), {"GITHUB_ACTIONS": "true"})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("::error title=arch-matrix stopped::refused")


def test_a_summary_that_would_be_too_long_keeps_its_table_and_says_what_it_lacks(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("x" * 1000)
    report = run(bad_run("linux/arm64", stdout="y" * github._SUMMARY_LIMIT))
    faces.report_to_github(report, in_actions(summary), io.StringIO())
    text = summary.read_text()
    assert len(text) < 4000
    assert "| linux/arm64 |" in text
    assert "too long for a step summary" in text


def test_a_summary_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (warning,) = faces.report_to_github(matrix(), in_actions(tmp_path / "no" / "s"), io.StringIO())
    assert warning.startswith("::warning title=step summary::not written to")


# Text


def test_printable_text_keeps_lines_and_shows_what_is_not_for_reading() -> None:
    assert escape_unprintable("a\tb\r\nc\rd\x1b\x9b\u202e\udc80\U0001f600é") == (
        "a\tb\nc\\x0dd\\x1b\\x9b\\u202e\\udc80\U0001f600é"
    )
    assert escape_unprintable("##[x] ### [y]") == "#\\x23[x] ### [y]"
    assert to_one_line(" a\nb\tc ") == "a\\nb c"


def test_the_last_line_is_the_last_with_something_on_it() -> None:
    assert last_line("one\n two \n \n\n") == "two"
    assert last_line(" \n") == ""


def test_a_tail_as_long_as_the_text_leaves_nothing_out() -> None:
    assert tail_lines("a\nb\n", 2) == ["a", "b"]
    assert tail_lines("a\nb\nc", 2)[0].startswith("(1 lines before")


# The package


def test_importing_the_package_imports_no_renderer_and_no_library() -> None:
    code = "import sys, buildkit_tasks.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "buildkit_tasks.report" in loaded
    assert not {"rich", "msgspec", "buildkit_tasks.report.terminal", "dataclasses"} & loaded


def test_importing_every_renderer_leaves_rich_for_when_a_table_is_drawn() -> None:
    code = "import sys; from buildkit_tasks.report import *; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "buildkit_tasks.report.terminal" in loaded
    assert not {"rich", "msgspec"} & loaded


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(callable(getattr(faces, name)) for name in faces.__all__)
    with pytest.raises(AttributeError, match="to_pdf"):
        _ = faces.to_pdf  # type: ignore[attr-defined]  # that is the point


def test_a_table_of_a_report_without_anything_still_says_what_is_wrong() -> None:
    failed = BuildResult(digest="", outputs=(), platforms=(), builder="", bases="", seconds=0, ok=False)
    empty: list[tuple[Report, str]] = [
        (VerifyReport(subject="x", digest="", platforms=()), "no platform was checked in x"),
        (RunReport(subject="x", results=()), "no platform was checked in x"),
        (MatrixReport(), "Stopped before setup: no error was given"),
        (failed, "the build failed"),
    ]
    for report, said in empty:
        assert said in drawn(report)


def test_an_emulator_without_a_version_is_named_alone() -> None:
    result = replace(good_run("linux/arm64"), emulator=EmulatorSummary(path="/opt/qemu-aarch64"))
    assert "│ qemu-aarch64 │" in rows(drawn(run(result)))[0]
