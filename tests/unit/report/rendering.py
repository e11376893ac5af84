"""Renderers of reports, and what the tests of several of them read of their output."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

from buildkit_tasks import report as renderers
from buildkit_tasks.report.model import MatrixReport, Outcome, Report, VerifyReport
from tests.support.report_samples import (
    bad_check,
    bad_run,
    both_cpus,
    build,
    good_check,
    good_run,
    run,
    setup,
    verdict,
    verify,
    warning,
)


def draw(report: Report, *, colour: bool = False, width: int | None = None) -> str:
    file = io.StringIO()
    renderers.print_table(report, file, colour=colour, width=width)
    return file.getvalue()


RENDERERS = [
    draw,
    renderers.to_json,
    renderers.to_junit,
    renderers.to_markdown,
    renderers.to_html,
    renderers.to_svg,
]
UNLIMITED = [renderers.to_json, renderers.to_junit, renderers.to_markdown, renderers.to_html]
READABLE = [draw, renderers.to_markdown, renderers.to_html, renderers.to_svg]
HOSTILE = "\x1b[2J\u202e::error::x ##[add-mask]y <b>|`*z*` @me\ud800"


def suites(report: Report) -> dict[str, ET.Element]:
    root = ET.fromstring(renderers.to_junit(report).encode())  # noqa: S314 - a document made here
    return {suite.attrib["name"]: suite for suite in root}


def cases(report: Report, step: str) -> list[ET.Element]:
    """Return the cases of a step's suite, which has no other elements except properties of a run."""
    suite = suites(report)[step]
    assert {child.tag for child in suite} <= {"testcase", *(["properties"] if step == "run" else [])}
    return suite.findall("testcase")


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("│ linux", "| linux"))]


def half_failed() -> MatrixReport:
    return MatrixReport(
        setup=setup(),
        build=build(),
        verify=verify(verdict("linux/amd64"), verdict("linux/arm64", good_check(), bad_check())),
        run=run(good_run("linux/amd64"), bad_run("linux/arm64", stdout="one\ntwo\n", stderr="why\n")),
    )


def thousand_problems() -> VerifyReport:
    checks = [bad_check(name="binary", path=f"/bin/{n}.", message=f"wrong {n}.") for n in range(500)]
    warnings = [warning(f"odd {n}.") for n in range(500)]
    return verify(verdict("linux/amd64"), verdict("linux/arm64", *checks, *warnings))


FAILED_ON_ONE_CPU = both_cpus(Outcome.ILLEGAL_INSTRUCTION)


def table_rows(report: Report) -> list[list[str]]:
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows(draw(report))]
