"""One report value as a table, JSON, JUnit XML, Markdown, HTML, an SVG picture, or a word to GitHub Actions.

Takes any value of :data:`buildkit_tasks.report.model.Report`. Everything an image printed is made
harmless for the place that it is shown in, and every format shows a failure in full or says
what it left out. A renderer is imported when it is first asked for (PEP 562): most commands end
without one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.report.files import check_report_paths, to_json, write_reports
    from buildkit_tasks.report.github import report_to_github
    from buildkit_tasks.report.html import to_html
    from buildkit_tasks.report.junit import to_junit
    from buildkit_tasks.report.markdown import to_markdown
    from buildkit_tasks.report.progress import LiveTable, open_live_table
    from buildkit_tasks.report.svg import to_svg
    from buildkit_tasks.report.terminal import needs_colour, preload_rich, print_table

__all__ = [
    "LiveTable",
    "check_report_paths",
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


if not TYPE_CHECKING:  # a checker would take any name to be here

    def __getattr__(name: str) -> object:
        """Import the renderer that is asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
