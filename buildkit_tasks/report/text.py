"""Text from images and tools, made safe to show.

What a guest prints is chosen by whoever wrote its image. Shown as it is, it could move the
cursor, reverse the reading order, or be taken for a command by the log that it is printed to.
"""

from __future__ import annotations

import html
import re

__all__ = [
    "escape_markup",
    "escape_match",
    "escape_unprintable",
    "last_line",
    "pluralise",
    "tail_lines",
    "to_one_line",
    "truncate_line",
]

# Control characters but tab and newline; what turns the reading order (Unicode UAX #9) or
# separates lines for some readers; lone surrogates; and the second `#` of `##[`, which GitHub's
# runner takes for a command wherever it stands in a line (ActionCommand.TryParse).
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
    r"|(?<=#)#(?=\[)",
)


def escape_match(match: re.Match[str]) -> str:
    r"""Write the matched character as Python does: ``\x1b``, ``\udc80``."""
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - one byte


def escape_unprintable(text: str) -> str:
    """Keep tabs and newlines, make every other character that is not for reading visible."""
    return _UNPRINTABLE.sub(escape_match, text.replace("\r\n", "\n"))


def to_one_line(text: str) -> str:
    r"""Make text printable in one line; its own line ends show as ``\n``."""
    return escape_unprintable(text).strip().replace("\n", "\\n").replace("\t", " ")


def escape_markup(text: str) -> str:
    """Make text printable and escape it for HTML and XML, in an element and in an attribute.

    What is printable is within the production Char of XML 1.0, section 2.2.
    """
    return html.escape(escape_unprintable(text))


def last_line(text: str) -> str:
    """Give the last line that has something on it, or nothing."""
    lines = (line.strip() for line in reversed(escape_unprintable(text).split("\n")))
    return next((line for line in lines if line), "")


def truncate_line(text: str, max_width: int) -> str:
    """Cut one line to at most ``width`` characters, and say so with three dots."""
    return text if len(text) <= max_width else text[: max_width - 3] + "..."


def tail_lines(text: str, max_lines: int) -> list[str]:
    """Give the last ``lines`` lines, led by a note of how many were left out."""
    all_lines = escape_unprintable(text).rstrip("\n").split("\n")
    omitted = len(all_lines) - max_lines
    if omitted <= 0:
        return all_lines
    return [f"({omitted} lines before these: a --report file has them all)", *all_lines[omitted:]]


def pluralise(number: int, singular: str, plural: str) -> str:
    """The number and the noun that agrees with it."""
    return f"{number} {singular if number == 1 else plural}"
