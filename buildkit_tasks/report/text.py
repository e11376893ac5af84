"""Lines of printable text for reports: one, the first, the last, and markup."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from buildkit_tasks.printable import escape_unprintable, refer_to_colons

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FULL_REPORT_HINT",
    "escape_markup",
    "head_lines",
    "last_line",
    "pluralise",
    "tail_lines",
    "to_one_line",
    "truncate_line",
]

FULL_REPORT_HINT = "a --report file has them all"


def to_one_line(text: str) -> str:
    r"""Return printable text in one line; its line ends become ``\n``."""
    return escape_unprintable(text).strip().replace("\n", "\\n").replace("\t", " ")


def escape_markup(text: str) -> str:
    """Return printable text, escaped for elements and attributes of HTML and XML.

    What is printable is within the production Char of XML 1.0, section 2.2.
    """
    return refer_to_colons(html.escape(escape_unprintable(text)))


def last_line(text: str) -> str:
    """Return the last line that is not blank, or an empty string."""
    lines = (line.strip() for line in reversed(escape_unprintable(text).split("\n")))
    return next((line for line in lines if line), "")


def truncate_line(text: str, max_width: int) -> str:
    """Return at most ``max_width`` characters of a line; the last three are dots if it is longer."""
    return text if len(text) <= max_width else text[: max_width - 3] + "..."


def head_lines(lines: Sequence[str], max_lines: int, hint: str) -> list[str]:
    """Return the first lines, then how many are left out and a hint where to find them."""
    omitted = len(lines) - max_lines
    return [*lines[:max_lines], f"({omitted} more lines: {hint})"] if omitted > 0 else [*lines]


def tail_lines(text: str, max_lines: int) -> list[str]:
    """Return the last lines of printable text, after a note of how many are left out."""
    lines = escape_unprintable(text).rstrip("\n").split("\n")
    omitted = len(lines) - max_lines
    if omitted <= 0:
        return lines
    return [f"({omitted} lines before these: {FULL_REPORT_HINT})", *lines[omitted:]]


def pluralise(number: int, singular: str, plural: str) -> str:
    """Return the number with the noun that agrees with it."""
    return f"{number} {singular if number == 1 else plural}"
