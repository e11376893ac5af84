"""One row of CSV, as buildx takes it for outputs, caches and secrets: ``type=oci,"dest=a,b.tar"``."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["format_csv_row", "parse_csv_row"]


def parse_csv_row(text: str, label: str) -> list[str]:
    """The fields of the one row.

    Raises :class:`UsageError`, which begins with ``what``, where buildx would drop what follows the row.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UsageError(f"{label} is no CSV: {error}") from error
    if len(rows) > 1:
        raise UsageError(f"{label} has more than one line")
    return rows[0] if rows else []


def format_csv_row(fields: Iterable[str]) -> str:
    """The row of these fields, each quoted that has to be."""
    buffer = io.StringIO()
    # The writer quotes the characters of its line's end: without one, line breaks stood bare.
    csv.writer(buffer, lineterminator="\r\n").writerow(fields)
    return buffer.getvalue().removesuffix("\r\n")
