"""Write report files, in the format that the ending of their name selects."""

from __future__ import annotations

import errno
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import LimitExceeded, UsageError
from buildkit_tasks.printable import escape_json
from buildkit_tasks.report.model import Report, to_document
from buildkit_tasks.system.files import check_writable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check_report_paths", "to_json", "write_reports"]

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def to_json(report: Report) -> str:
    """Return a report as one printable JSON document."""
    text = json.dumps(to_document(report), indent=2, ensure_ascii=False, allow_nan=False)
    return escape_json(text) + "\n"


_RENDERERS = {
    ".json": ("files", "to_json"),
    ".xml": ("junit", "to_junit"),
    ".md": ("markdown", "to_markdown"),
    ".html": ("html", "to_html"),
    ".svg": ("svg", "to_svg"),
}


def check_report_paths(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the paths, or raise :class:`UsageError`.

    That is for an unknown ending, for a directory, and for a path that this user cannot write to.
    """
    return tuple(_check_path(Path(path)) for path in paths)


def write_reports(report: Report, paths: Iterable[str | Path]) -> None:
    """Write a report to each path atomically, and create its parent directories.

    Raises :class:`UsageError` for an unknown ending before anything is written.
    """
    for path in check_report_paths(paths):
        text = _find_renderer(path)(report)
        try:
            write_atomically(path, text)
        except OSError as error:
            raise _translate_write_error(path, error) from error


def _find_renderer(path: Path) -> Callable[[Report], str]:
    module, name = _RENDERERS[path.suffix.lower()]
    renderer: Callable[[Report], str] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return renderer


def _check_path(path: Path) -> Path:
    if path.suffix.lower() not in _RENDERERS:
        suffixes = ", ".join(_RENDERERS)
        raise UsageError(f"no report can be written to {path}", hint=f"end its name in one of {suffixes}")
    check_writable(path, "--report=")
    if path.is_dir():
        raise UsageError(f"no report can be written to {path}: it is a folder")
    return path


def _translate_write_error(path: Path, error: OSError) -> UsageError | LimitExceeded:
    message = f"the report {path} was not written: {error.strerror}"
    return LimitExceeded(message) if error.errno in _DISK_FULL_ERRNOS else UsageError(message)
