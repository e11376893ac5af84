"""Renderers of reports: a table, JSON, JUnit XML, Markdown, HTML, SVG, and GitHub Actions' annotations.

Each takes any value of :data:`buildkit_tasks.report.model.Report`. What an image printed is escaped for
the format, and a failure is shown in full or with how much is left out. A renderer is imported when it is
first used (PEP 562), because most commands need none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.report.files import check_report_paths, to_json, write_reports
    from buildkit_tasks.report.github import error_to_github, report_to_github
    from buildkit_tasks.report.html import to_html
    from buildkit_tasks.report.junit import to_junit
    from buildkit_tasks.report.markdown import to_markdown
    from buildkit_tasks.report.progress import LiveTable, open_live_table
    from buildkit_tasks.report.svg import to_svg
    from buildkit_tasks.report.terminal import needs_colour, preload_rich, print_table

__all__ = [
    "LiveTable",
    "check_report_paths",
    "error_to_github",
    "needs_colour",
    "open_live_table",
    "preload_rich",
    "print_table",
    "report_to_github",
    "to_html",
    "to_json",
    "to_junit",
    "to_markdown",
    "to_svg",
    "write_reports",
]

_MODULES = {
    "error_to_github": "github",
    "report_to_github": "github",
    "LiveTable": "progress",
    "check_report_paths": "files",
    "open_live_table": "progress",
    "print_table": "terminal",
    "preload_rich": "terminal",
    "to_html": "html",
    "to_json": "files",
    "to_junit": "junit",
    "to_markdown": "markdown",
    "to_svg": "svg",
    "needs_colour": "terminal",
    "write_reports": "files",
}


if not TYPE_CHECKING:  # otherwise a type checker accepts any name

    def __getattr__(name: str) -> object:
        """Import the module of a renderer."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
