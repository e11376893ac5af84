"""Make text from images and tools safe to show.

Whoever builds an image chooses what it prints. Printed as it is, it could move the cursor, reverse
the reading order, or be executed as a command by the log that it is printed to.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FULL_REPORT_HINT",
    "escape_markup",
    "escape_match",
    "escape_message",
    "escape_unprintable",
    "head_lines",
    "last_line",
    "pluralise",
    "tail_lines",
    "to_one_line",
    "truncate_line",
]

FULL_REPORT_HINT = "a --report file has them all"

# Control characters except tab and newline; characters that change the reading order (Unicode UAX #9), that
# have no width (but for the two selectors of emoji), or that some readers take for line ends; lone
# surrogates; and the second `#` of `##[`, which GitHub's runner executes wherever it is in a line
# (ActionCommand.TryParse).
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    r"\U000e0000-\U000e0fff]"
    r"|(?<=#)#(?=\[)",
)
_MAX_UNIT = 0xFFFF  # the greatest code that four hexadecimal digits express
# The start of a workflow command, which GitHub's runner executes after blanks too (ActionCommand.TryParseV2).
_WORKFLOW_COMMAND = re.compile(r"^([^\S\n]*):(?=:)", re.MULTILINE)


def escape_match(match: re.Match[str]) -> str:
    r"""Return the matched character as Python escapes it: ``\x1b``, ``\udc80``."""
    code = ord(match[0])
    if code > _MAX_UNIT:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - one byte


def escape_unprintable(text: str) -> str:
    """Return the text with escapes instead of unprintable characters; tabs and newlines stay."""
    return _UNPRINTABLE.sub(escape_match, text.replace("\r\n", "\n"))


def escape_message(text: str) -> str:
    """Return a printable message of which no line is a workflow command.

    Reports need no such escape: they begin no line with text of an image.
    """
    return _WORKFLOW_COMMAND.sub(r"\1\\x3a", escape_unprintable(text))


def to_one_line(text: str) -> str:
    r"""Return printable text in one line; its line ends become ``\n``."""
    return escape_unprintable(text).strip().replace("\n", "\\n").replace("\t", " ")


def escape_markup(text: str) -> str:
    """Return printable text, escaped for elements and attributes of HTML and XML.

    What is printable is within the production Char of XML 1.0, section 2.2.
    """
    return html.escape(escape_unprintable(text))


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
