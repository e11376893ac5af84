"""One list of hostile texts in every message and every format of a report."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.printable import escape_message, escape_output
from buildkit_tasks.report import (
    print_table,
    report_to_github,
    to_html,
    to_json,
    to_junit,
    to_markdown,
    to_svg,
)
from buildkit_tasks.report.model import Report
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from buildkit_tasks.system.notify import log_progress
from tests.support.report_samples import bad_check, bad_run, matrix, run, stopped, verdict, verify, warning

TEXTS = (
    "\x1b[2J\x1b]0;title\x07", "\x9b31m", "a\rb", "\x08\x7f", "a\u202eb\u2066c", "\u200b\u200d\ufeff\xad",
    "\u2028\x85", "\U000e0041", "::stop-commands::x", "x\n::add-mask::y", "x\r\n \t::error::z",
    "\u3000::debug::x", "##[error]x", "###[x]", "##vso[task.setvariable variable=x]y", "\udc80",
)  # fmt: skip
UTF8_TEXTS = [text for text in TEXTS if text != "\udc80"]
ALL = "\n".join(TEXTS)


def draw_terminal(report: Report) -> str:
    file = io.StringIO()
    print_table(report, file, colour=False, width=100)
    return file.getvalue()


RENDERERS: dict[str, Callable[[Report], str]] = {
    "terminal": draw_terminal,
    "json": to_json,
    "junit": to_junit,
    "markdown": to_markdown,
    "html": to_html,
    "svg": to_svg,
}


def make_reports(text: str) -> list[Report]:
    failed = bad_run(f"linux/{text}", stdout=text, stderr=text)
    changes = {"name": text, "message": text, "path": text, "expected": text, "actual": text}
    hostile_run = run(replace(failed, command=text, cpu=text, message=text))
    return [
        replace(hostile_run, subject=text),
        verify(verdict(f"linux/{text}", bad_check(**changes), warning(text))),
        stopped(text),
        matrix("linux/amd64"),
    ]


def check_is_printable(text: str) -> None:
    # Emoji's selectors and format characters that are drawn may stay.
    categories = {unicodedata.category(each) for each in text if each not in "\n\t"}
    assert categories.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert "##[" not in text
    assert "##vso[" not in text
    assert not re.search(r"(?m)^\s*::", text)


@pytest.mark.parametrize("text", [*TEXTS, ALL], ids=ascii)
@pytest.mark.parametrize("name", RENDERERS)
def test_formats(name: str, text: str) -> None:
    for report in make_reports(text):
        check_is_printable(RENDERERS[name](report))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_annotations(text: str, tmp_path: Path) -> None:
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    for report in make_reports(text):
        for command in report_to_github(report, environ, io.StringIO()):
            name, _, rest = command.partition(" title=")
            assert name in ("::error", "::warning")
            check_is_printable(rest)
    check_is_printable((tmp_path / "summary").read_text())


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_errors(text: str, caplog: pytest.LogCaptureFixture) -> None:
    error = MalformedImage(text, platform=text, hint=text)
    check_is_printable(str(error))
    assert error.message == text
    with caplog.at_level(logging.INFO):
        log_progress(text)
    check_is_printable(caplog.messages[-1])
    assert escape_message(escape_message(text)) == escape_message(text)


def test_json_means_the_same() -> None:
    report = run(bad_run("linux/arm64", stdout=ALL.replace("\udc80", "")))
    assert json.loads(to_json(report))["results"][0]["stdout"] == report.results[0].stdout


@pytest.mark.parametrize("text", UTF8_TEXTS, ids=ascii)
def test_output_of_programs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    stream = io.StringIO()
    commands = SubprocessRunner(stream_output=stream)
    script = f"import sys; sys.stdout.buffer.write({text.encode()!r})"
    result = commands.stream([sys.executable, "-c", script], CommandOptions())
    check_is_printable(stream.getvalue())
    check_is_printable(result.stderr)


def test_colours_of_programs() -> None:
    assert escape_output("\x1b[33m1 warning\x1b[0m\x1b[2J") == "\x1b[33m1 warning\x1b[0m\\x1b[2J"


@pytest.mark.parametrize("text", UTF8_TEXTS, ids=ascii)
def test_commands_of_dry_runs(text: str) -> None:
    stream = io.StringIO()
    SubprocessRunner(dry_run=True, dry_run_output=stream).run(["printf", "%s", text], mutates=True)
    check_is_printable(stream.getvalue())
    # What was printed is the command.
    argv = ["bash", "-c", stream.getvalue()]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == text.encode()
    assert shlex.split(stream.getvalue())[0] == "printf"
