"""Make the report of a failed test printable, which quotes what an image has printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _pytest._code.code import ExceptionChainRepr, ReprEntry, ReprEntryNative

from buildkit_tasks.printable import escape_message, escape_output

if TYPE_CHECKING:
    import pytest

__all__ = ["escape_report"]


def escape_report(report: pytest.TestReport) -> pytest.TestReport:
    """Return the report with printable messages, also those of assertions, and printable captured output."""
    report.sections = [(name, escape_output(text)) for name, text in report.sections]
    if isinstance(report.longrepr, str):
        report.longrepr = escape_message(report.longrepr)
    elif isinstance(report.longrepr, ExceptionChainRepr):
        _escape_chain(report.longrepr)
    return report


def _escape_chain(chain: ExceptionChainRepr) -> None:
    for traceback, location, _ in chain.chain:
        if location is not None:
            location.message = escape_message(location.message)
        for entry in traceback.reprentries:
            if isinstance(entry, ReprEntry | ReprEntryNative):
                entry.lines = [*map(escape_message, entry.lines)]
