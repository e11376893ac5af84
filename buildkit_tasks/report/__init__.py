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
    from buildkit_tasks.report.github import announce_in_github
    from buildkit_tasks.report.html import to_html
    from buildkit_tasks.report.junit import to_junit
    from buildkit_tasks.report.markdown import to_markdown
    from buildkit_tasks.report.progress import LiveRuns, live_runs
    from buildkit_tasks.report.svg import to_svg
    from buildkit_tasks.report.terminal import print_table, render_ahead, wants_colour

__all__ = [
    "LiveRuns",
    "announce_in_github",
    "check_report_paths",
    "live_runs",
    "print_table",
    "render_ahead",
    "to_html",
    "to_json",
    "to_junit",
    "to_markdown",
    "to_svg",
    "wants_colour",
    "write_reports",
]

_ROOMS = {
    "announce_in_github": "github",
    "LiveRuns": "progress",
    "check_report_paths": "files",
    "live_runs": "progress",
    "print_table": "terminal",
    "render_ahead": "terminal",
    "to_html": "html",
    "to_json": "files",
    "to_junit": "junit",
    "to_markdown": "markdown",
    "to_svg": "svg",
    "wants_colour": "terminal",
    "write_reports": "files",
}


if not TYPE_CHECKING:  # a checker would take any name to be here

    def __getattr__(name: str) -> object:
        """Import the renderer that is asked for."""
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
