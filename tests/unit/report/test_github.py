from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks import report as renderers
from buildkit_tasks.report import github
from tests.support.report_samples import (
    bad_check,
    bad_run,
    matrix,
    on_cpu,
    run,
    stopped,
    verdict,
    verify,
    warning,
)
from tests.unit.report.rendering import HOSTILE, half_failed, thousand_problems


def test_twenty_annotations() -> None:
    commands = renderers.report_to_github(thousand_problems(), {"GITHUB_ACTIONS": "true"}, io.StringIO())
    for name in ("error", "warning"):
        commands_of_kind = [command for command in commands if command.startswith(f"::{name} ")]
        assert len(commands_of_kind) == 21
        assert (
            commands_of_kind[-1]
            == f"::{name} title=verify linux/arm64::480 more: a --report file has them all"
        )


def test_annotation_names_cpu_and_command() -> None:
    report = run(*(on_cpu(cpu, replace(bad_run("linux/386"), command=f"a:b {cpu}")) for cpu in ("", "x1")))
    commands = renderers.report_to_github(report, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert [command.split("::")[1] for command in commands] == [
        "error title=run linux/386 on max%3A a%3Ab  failed",
        "error title=run linux/386 on x1%3A a%3Ab x1 failed",
    ]  # fmt: skip


def test_annotation_is_one_line() -> None:
    report = run(
        *(
            on_cpu(f"{n}\n::error::x", replace(bad_run(HOSTILE, stdout=HOSTILE), command="\n::x"))
            for n in (1, 2)
        )
    )
    stream = io.StringIO()
    commands = renderers.report_to_github(report, {"GITHUB_ACTIONS": "true"}, stream)
    assert stream.getvalue().count("\n") == len(commands) == 2
    assert not {"\x1b", "\u202e"} & set(stream.getvalue())


def test_outside_github_actions(tmp_path: Path) -> None:
    summary, stream = tmp_path / "summary", io.StringIO()
    environ = {"GITHUB_STEP_SUMMARY": str(summary)}
    assert renderers.report_to_github(half_failed(), environ, stream) == ()
    assert not summary.exists()
    assert renderers.report_to_github(half_failed(), environ | {"GITHUB_ACTIONS": "false"}, stream) == ()
    assert stream.getvalue() == ""


def actions_env(summary: Path) -> dict[str, str]:
    return {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}


def test_step_summary(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("before")
    assert renderers.report_to_github(matrix(), actions_env(summary), io.StringIO()) == ()
    assert summary.read_text() == f"before\n{renderers.to_markdown(matrix())}"


def test_error_annotations(tmp_path: Path) -> None:
    stream = io.StringIO()
    commands = renderers.report_to_github(half_failed(), actions_env(tmp_path / "s"), stream)
    assert stream.getvalue().splitlines() == list(commands)
    first, second = commands
    assert first.startswith("::error title=verify linux/arm64 binary-machine::the entry point is for amd64")
    assert "%0Aexpected: arm64%0Aactual: amd64%0Apath: /hello%0A" in first
    assert second.startswith("::error title=run linux/arm64 failed::it printed something else%0A")


def test_warning_annotation() -> None:
    report = verify(verdict("linux/amd64"), verdict("linux/arm64", warning("a\nb")))
    (command,) = renderers.report_to_github(report, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert command.startswith("::warning title=verify linux/arm64 parity::a%0Ab%0Apath: /usr/bin/foo%0A")


def test_annotation_is_escaped() -> None:
    report = stopped("100%0A\r\nnext: this, that")
    platform = verify(verdict("a:b,c%\n", bad_check()))
    (error,) = renderers.report_to_github(report, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    lines = (
        "::error title=arch-matrix stopped::100%250A",
        "next: this, that",
        "stopped: before the end of verify",
    )
    assert error == "%0A".join(lines)
    (error,) = renderers.report_to_github(platform, {"GITHUB_ACTIONS": "true"}, io.StringIO())
    assert error.startswith("::error title=verify a%3Ab%2Cc%25%0A binary-machine::the entry")


def test_annotations_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    renderers.report_to_github(stopped("refused"), {"GITHUB_ACTIONS": "true"})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("::error title=arch-matrix stopped::refused")


def test_too_long_step_summary(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("x" * 1000)
    report = run(bad_run("linux/arm64", stdout="y" * github._SUMMARY_LIMIT))
    renderers.report_to_github(report, actions_env(summary), io.StringIO())
    text = summary.read_text()
    assert len(text) < 4000
    assert "| linux/arm64 |" in text
    assert "too long for a step summary" in text


def test_almost_full_step_summary(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("x" * (github._SUMMARY_LIMIT - 100))
    renderers.report_to_github(matrix(), actions_env(summary), io.StringIO())
    assert "too long for a step summary" in summary.read_text()


def test_unwritable_step_summary(tmp_path: Path) -> None:
    (warning,) = renderers.report_to_github(matrix(), actions_env(tmp_path / "no" / "s"), io.StringIO())
    assert warning.startswith("::warning title=step summary::not written to")
