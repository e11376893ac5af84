"""The page ``docs/planted-faults.md``, formatted from the results of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.conftest import ROOT
from tests.planted_faults.catalogue import FAULTS, VALID_IMAGES
from tests.planted_faults.planting import Fault, FaultResult, Finding, ReportedFinding, shorten

PAGE = ROOT / "docs/planted-faults.md"
_INTRODUCTION = """\
# Planted faults

Each row is an image from real builds with one planted fault. The check that detected it was recorded by a run
of `verify` on that image (`python -m tests.planted_faults > docs/planted-faults.md`); the same image without
the fault passed, and no other check reported anything. A check in brackets passes with a warning.
`tests/planted_faults` plants the faults, and its tests compare each report with the declared findings.
"""
_VALID_IMAGES = """
## Valid images that look wrong

No check may report anything about these images:
"""


def format_page(results: Iterable[FaultResult]) -> str:
    by_name = {result.fault.name: result for result in results}
    rows = [_INTRODUCTION, *_iter_rows(by_name), _VALID_IMAGES, *_iter_valid_images(by_name), ""]
    return "\n".join(rows)


def numbered_faults() -> list[tuple[int, Fault]]:
    """Return the faults with their numbers in the table."""
    return list(enumerate(FAULTS, 1))


def declared_cells(number: int, fault: Fault) -> tuple[str, str, str, str]:
    """Return the cells of a row that depend only on the declaration: number, fault, checks, platforms."""
    return str(number), _escape(fault.text), *_check_and_platform_cells(fault.expected)


def read_declared_cells(page: str) -> list[tuple[str, ...]]:
    """Read the cells of :func:`declared_cells` from each row of a page."""
    rows = (line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line[2].isdigit())
    return [(cells[0].removeprefix("| "), *cells[1:4]) for cells in rows]


def _check_and_platform_cells(findings: Iterable[Finding]) -> tuple[str, str]:
    findings = list(findings)
    checks = dict.fromkeys(f"({each.check})" if each.warning else each.check for each in findings)
    platforms = dict.fromkeys(each.platform for each in findings)
    return ", ".join(checks), ", ".join(platforms)


def _iter_rows(results: dict[str, FaultResult]) -> Iterator[str]:
    yield "| # | fault | detected by | platform | where | message |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for number, fault in numbered_faults():
        new = results[fault.name].new_findings
        checks, platforms = _check_and_platform_cells(each.finding for each in new)
        location = next((text for each in new if (text := _format_location(each))), "")
        message = _escape(shorten(new[0].message)) if new else "**nothing**"
        cells = (str(number), _escape(fault.text), checks, platforms, location, message)
        yield f"| {' | '.join(cells)} |"


def _iter_valid_images(results: dict[str, FaultResult]) -> Iterator[str]:
    for fault in VALID_IMAGES:
        problems = results[fault.name].problems
        yield f"- {fault.text}{f': **{shorten(problems[0])}**' if problems else ''}"


def _format_location(reported: ReportedFinding) -> str:
    layer = f"layer {reported.layer + 1} of {reported.layer_count}" if reported.layer is not None else ""
    path = f"`{reported.finding.path!r}`".replace("'", "") if reported.finding.path else ""
    return ", ".join(part for part in (path, layer) if part)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
