"""CSV rows as in buildx options for outputs, caches and secrets: ``type=oci,"dest=a,b.tar"``."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["format_csv_row", "parse_csv_row"]


def parse_csv_row(text: str, label: str) -> list[str]:
    """Return the fields of a single row.

    Raises :class:`UsageError`, which names ``label``, for invalid CSV and for a second row, which buildx
    would ignore.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UsageError(f"{label} is not valid CSV: {error}") from error
    if len(rows) > 1:
        raise UsageError(f"{label} has more than one line")
    return rows[0] if rows else []


def format_csv_row(fields: Iterable[str]) -> str:
    """Return the fields as a row, quoted where necessary."""
    buffer = io.StringIO()
    # The writer quotes the characters of its line terminator: an empty one would leave line breaks unquoted.
    csv.writer(buffer, lineterminator="\r\n").writerow(fields)
    return buffer.getvalue().removesuffix("\r\n")
