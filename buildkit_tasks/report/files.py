"""Report files: one kind for each file name ending, whole or not there at all."""

from __future__ import annotations

import errno
import importlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import LimitExceeded, UsageError
from buildkit_tasks.report.model import Report, to_document
from buildkit_tasks.system.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check_report_paths", "to_json", "write_reports"]

_SURROGATES = re.compile("[\ud800-\udfff]")
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def to_json(report: Report) -> str:
    """Write a report as one JSON document, its keys in the interface's order.

    A lone surrogate, which is how Python keeps a byte that is no UTF-8, becomes U+FFFD: RFC 8259
    has no encoding for it. In ``##[`` one sign is written as an escape, which reads the same,
    because GitHub's runner obeys ``##[...]`` wherever it stands in a line of a log.
    """
    text = json.dumps(to_document(report), indent=2, ensure_ascii=False, allow_nan=False)
    return _SURROGATES.sub("\ufffd", text).replace("##[", "#\\u0023[") + "\n"


# The renderers by name: the package imports the one that is asked for.
_RENDERERS = {
    ".json": "to_json",
    ".xml": "to_junit",
    ".md": "to_markdown",
    ".html": "to_html",
    ".svg": "to_svg",
}


def check_report_paths(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Give the paths, or raise :class:`UsageError` for one that no report can be written to."""
    return tuple(_check_path(Path(path)) for path in paths)


def write_reports(report: Report, paths: Iterable[str | Path]) -> None:
    """Write a report to every path, in the format of its ending.

    Folders are made. Each file is written beside its place and renamed over it, so that a reader
    sees the old one or the whole new one. Raises :class:`UsageError` before anything is written
    for an ending that is not known.
    """
    for path in check_report_paths(paths):
        text = _find_renderer(path)(report)
        try:
            write_atomically(path, text)
        except OSError as error:
            raise _translate_write_error(path, error) from error


def _find_renderer(path: Path) -> Callable[[Report], str]:
    package = importlib.import_module("buildkit_tasks.report")
    renderer: Callable[[Report], str] = getattr(package, _RENDERERS[path.suffix.lower()])
    return renderer


def _check_path(path: Path) -> Path:
    if path.suffix.lower() not in _RENDERERS:
        suffixes = ", ".join(_RENDERERS)
        raise UsageError(f"no report can be written to {path}", hint=f"end its name in one of {suffixes}")
    if path.is_dir():
        raise UsageError(f"no report can be written to {path}: it is a folder")
    return path


def _translate_write_error(path: Path, error: OSError) -> UsageError | LimitExceeded:
    message = f"the report {path} was not written: {error.strerror}"
    return LimitExceeded(message) if error.errno in _DISK_FULL_ERRNOS else UsageError(message)
