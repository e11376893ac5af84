from __future__ import annotations

import html
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks import report as renderers
from buildkit_tasks.report.model import ImagesReport, Outcome, Report, to_document
from buildkit_tasks.report.steps import list_steps
from buildkit_tasks.report.summary import summarize
from tests.support.environment import delete_env
from tests.support.report_samples import (
    TEN,
    TWO,
    bad_check,
    bad_reports,
    bad_run,
    good_reports,
    good_run,
    matrix,
    on_cpu,
    run,
    stopped,
    verdict,
    verify,
    warning_reports,
)
from tests.unit.report.rendering import (
    FAILED_ON_ONE_CPU,
    HOSTILE,
    READABLE,
    RENDERERS,
    UNLIMITED,
    cases,
    draw,
    half_failed,
    rows,
    thousand_problems,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("error", ["the registry refused: 401", "no engine answers\nstart one"])
def test_stopped_pipeline_is_shown(render: Callable[[Report], str], error: str) -> None:
    text = render(stopped(error))
    for part in [*TWO, *error.split("\n"), "dist/hello.tar" if render is not renderers.to_junit else "build"]:
        assert part in text


def test_platforms_that_were_not_reached_have_not_passed() -> None:
    assert summarize(stopped()).summary_line.startswith("0 of 2 platforms passed.")


def test_output_with_a_fence() -> None:
    text = renderers.to_markdown(run(bad_run("linux/arm64", stdout="a\n````\nb")))
    assert "`````text\n" in text


@pytest.mark.parametrize("report", bad_reports())
def test_bad_report_has_problem(report: Report) -> None:
    assert any(case.problems for step in list_steps(report) for case in step.rows)


@pytest.mark.parametrize("report", bad_reports())
def test_failure_is_text(report: Report) -> None:
    assert "\nFAILED " in draw(report)
    assert ": FAILED\n" in renderers.to_markdown(report)
    assert "<h2>What failed</h2>\n<details" in renderers.to_html(report)
    assert ">FAILED " in renderers.to_svg(report)


@pytest.mark.parametrize("report", [*good_reports(), *bad_reports(), *warning_reports()])
def test_ok_means_no_problem(report: Report) -> None:
    assert report.ok is not any(case.problems for step in list_steps(report) for case in step.rows)


@pytest.mark.parametrize("report", good_reports())
def test_good_report_mentions_no_failure(report: Report) -> None:
    assert not any(case.problems for step in list_steps(report) for case in step.rows)
    for render in READABLE:
        text = render(report)
        assert "FAILED" not in text
        assert not {"WARNING", "warning", "Warnings"} & set(
            re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).split()
        )
        assert f"2 of 2 {'images' if isinstance(report, ImagesReport) else 'platforms'}" in text


@pytest.mark.parametrize("render", [draw, renderers.to_markdown, renderers.to_junit, renderers.to_html])
def test_facts_are_not_truncated(render: Callable[[Report], str]) -> None:
    check = bad_check(message="m" * 500, expected="e" * 200, actual="a" * 200, path="/p" * 100)
    text = render(verify(verdict("linux/arm64", check)))
    for fact in (check.message, check.expected, check.actual, check.path, check.layer):
        assert fact in text


@pytest.mark.parametrize("render", RENDERERS)
def test_every_failed_check_is_shown(render: Callable[[Report], str]) -> None:
    text = render(verify(verdict("linux/arm64", bad_check(message="first"), bad_check(message="second"))))
    assert "first" in text
    assert "second" in text


@pytest.mark.parametrize("render", [draw, renderers.to_markdown, renderers.to_junit])
def test_output_of_failed_run(render: Callable[[Report], str]) -> None:
    text = render(run(bad_run("linux/s390x", Outcome.EMULATOR_CRASH, stdout="out", stderr="qemu: uncaught")))
    for part in ("emulator-crash", "exit code: 1", "out", "qemu: uncaught", "/usr/bin/qemu-s390x 10.0.2"):
        assert part in text


@pytest.mark.parametrize("render", [draw, renderers.to_markdown, renderers.to_junit])
def test_empty_actual_value(render: Callable[[Report], str]) -> None:
    text = render(verify(verdict("linux/arm64", bad_check(message="", actual=""))))
    assert "expected arm64, found (none)" in text
    assert "actual: (none)" in text


@pytest.mark.parametrize(
    "render", [draw, renderers.to_json, renderers.to_markdown, renderers.to_html, renderers.to_svg]
)
def test_run_output_is_escaped(render: Callable[[Report], str]) -> None:
    text = render(run(bad_run(HOSTILE, stdout=f"::add-mask::x\n{HOSTILE}", stderr=HOSTILE, message=HOSTILE)))
    assert not {"\x1b", "\ud800"} & set(text)
    assert "##[" not in text
    if render is not renderers.to_json:
        assert "\u202e" not in text


@pytest.mark.parametrize("report", warning_reports())
def test_warnings_are_counted(report: Report) -> None:
    assert report.ok
    assert not any(case.problems for step in list_steps(report) for case in step.rows)
    for render in READABLE:
        assert "2 warnings." in render(report)
        assert "FAILED" not in render(report)


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("report", warning_reports())
def test_warning_message_is_shown(render: Callable[[Report], str], report: Report) -> None:
    assert "linux/arm64 lacks /usr/bin/foo that linux/amd64 has" in render(report)


@pytest.mark.parametrize("render", [draw, renderers.to_svg])
def test_twenty_problems_are_shown(render: Callable[[Report], str]) -> None:
    text = render(thousand_problems())
    for word in ("wrong", "odd"):
        assert f"{word} 19." in text
        assert f"{word} 20." not in text
    assert len(re.findall(r"\(480 more.*a --report file.* has them all\)", text)) == 2
    assert "1 of 2 platforms verified, 500 warnings. FAILED: linux/arm64 (verify)." in text


@pytest.mark.parametrize("render", UNLIMITED)
def test_files_have_all_problems(render: Callable[[Report], str]) -> None:
    text = render(thousand_problems())
    assert all(f"wrong {n}." in text and f"/bin/{n}." in text and f"odd {n}." in text for n in range(500))


@pytest.mark.parametrize("render", READABLE)
@pytest.mark.parametrize(
    "report", [FAILED_ON_ONE_CPU, replace(matrix("linux/amd64", "linux/arm/v6"), run=FAILED_ON_ONE_CPU)]
)
def test_cpu_difference_is_noted(render: Callable[[Report], str], report: Report) -> None:
    text = render(report)
    assert "linux/arm/v6: passed on max, illegal-instruction on arm1176" in text
    assert "linux/amd64: passed on" not in text
    assert "run linux/arm/v6 on arm1176" in text
    assert "FAILED: linux/arm/v6 (run on arm1176)." in text
    assert "run by: sandbox" in text
    assert "seconds for each platform: linux/amd64 0.50, linux/arm/v6 0.75" in text


@pytest.mark.parametrize("render", [*READABLE, renderers.to_junit])
def test_failed_command_is_shown(render: Callable[[Report], str]) -> None:
    assert "command: uname -m" in re.sub(
        "</dt><dd>", ": ", render(run(replace(bad_run("linux/386"), command="uname -m")))
    )


@pytest.mark.parametrize(
    "render", [draw, renderers.to_json, renderers.to_markdown, renderers.to_html, renderers.to_svg]
)
def test_run_fields_are_escaped(render: Callable[[Report], str]) -> None:
    bad = bad_run(HOSTILE, stdout=HOSTILE, stderr=HOSTILE, message=HOSTILE)
    good = good_run(HOSTILE, stdout=HOSTILE)
    results = [
        on_cpu(f"{HOSTILE}{n}", replace(result, command=f"{HOSTILE}{n}"))
        for n in (1, 2)
        for result in (bad, good)
    ]
    report = run(*(replace(result, runner=HOSTILE) for result in results))
    for text in (render(report), render(replace(matrix(HOSTILE), run=report))):
        assert not {"\x1b", "\ud800"} & set(text)
        assert "##[" not in text
        if render is not renderers.to_json:
            assert "\u202e" not in text
        if render is renderers.to_html:
            assert "<b>" not in text
        if render is renderers.to_markdown:
            assert not re.search(r"(?m)^\|.*[<`]", text)


def test_import_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    delete_env(monkeypatch, "COVERAGE_*")  # in a measured process coverage.py imports dataclasses
    code = "import sys, buildkit_tasks.report; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(process.stdout.split())
    assert "buildkit_tasks.report" in loaded
    assert not {"rich", "msgspec", "buildkit_tasks.report.terminal", "dataclasses"} & loaded


def test_renderers_do_not_import_rich() -> None:
    code = "import sys; from buildkit_tasks.report import *; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(process.stdout.split())
    assert "buildkit_tasks.report.terminal" in loaded
    assert not {"rich", "msgspec"} & loaded


def test_public_names() -> None:
    assert all(callable(getattr(renderers, name)) for name in renderers.__all__)
    with pytest.raises(AttributeError, match="to_pdf"):
        _ = renderers.to_pdf  # type: ignore[attr-defined]  # it does not exist


def test_hint_is_shown_once() -> None:
    hints = ("dos2unix run", "dos2unix run", "chmod +x run")
    checks = (bad_check(message=f"failure {number}", hint=hint) for number, hint in enumerate(hints))
    report = verify(*(verdict(name, check) for name, check in zip(TEN, checks, strict=False)))
    for render in READABLE:
        text = html.unescape(render(report))
        assert [text.count(f"try: {hint}") for hint in hints[1:]] == [1, 1], render
    assert to_document(report)["platforms"][0]["checks"][0]["hint"] == "dos2unix run"
    assert [case.findtext("failure", "").count("try: ") for case in cases(report, "verify")] == [1, 1, 1]


def test_never_started_run_has_no_runner() -> None:
    never = replace(bad_run("linux/amd64", Outcome.WRONG_ARCH), exit_code=None, emulated=False, emulator=None)
    for result in (never, replace(never, outcome=Outcome.FAILED), replace(never, cpu="qemu64")):
        for report in (run(result), replace(half_failed(), run=run(result))):
            (line,) = (line for line in rows(draw(report)) if "linux/amd64" in line)
            assert "native" not in line
            assert ("qemu64" in line) == bool(result.cpu)
