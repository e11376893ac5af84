"""One row of CSV, as buildx takes it for outputs, caches and secrets: ``type=oci,"dest=a,b.tar"``."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["read_row", "write_row"]


def read_row(text: str, what: str) -> list[str]:
    """The fields of the one row.

    Raises :class:`UsageError`, which begins with ``what``, where buildx would drop what follows the row.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UsageError(f"{what} is no CSV: {error}") from error
    if len(rows) > 1:
        raise UsageError(f"{what} has more than one line")
    return rows[0] if rows else []


def write_row(items: Iterable[str]) -> str:
    """The row of these fields, each quoted that has to be."""
    buffer = io.StringIO()
    # The writer quotes the characters of its line's end: without one, line breaks stood bare.
    csv.writer(buffer, lineterminator="\r\n").writerow(items)
    return buffer.getvalue().removesuffix("\r\n")
