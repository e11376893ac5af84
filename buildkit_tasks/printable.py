"""Make text from images and tools printable, in messages and in every format of a report.

Whoever builds an image chooses what it prints. Printed as it is, it could move the cursor, reverse
the reading order, or be executed as a command by the log that it is printed to.
"""

from __future__ import annotations

import re

__all__ = [
    "escape_json",
    "escape_match",
    "escape_message",
    "escape_output",
    "escape_unprintable",
    "refer_to_colons",
]

# Control characters except tab and newline; characters that change the reading order (Unicode UAX #9), that
# have no width (but for the two selectors of emoji), or that some readers take for line ends; lone
# surrogates; and the second `#` of `##[` and `##vso[`, which the runners of GitHub and Azure execute
# wherever it is in a line (ActionCommand.TryParse, Command.TryParse).
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    r"\U000e0000-\U000e0fff]"
    r"|(?<=#)#(?=(?:[vV][sS][oO])?\[)",
)
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_SURROGATE = re.compile("[\ud800-\udfff]")
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
    """Return a printable message of which no line is a workflow command. To escape twice changes nothing."""
    return _WORKFLOW_COMMAND.sub(r"\1\\x3a", escape_unprintable(text))


def refer_to_colons(markup: str) -> str:
    """Return HTML or XML that means the same, of which no line is a workflow command."""
    return _WORKFLOW_COMMAND.sub(r"\1&#58;", markup)


def escape_output(text: str) -> str:
    """Do as :func:`escape_message`, but keep colours (ECMA-48, SGR), which change no more than the look."""
    parts = _COLOUR.split(text)
    return "".join(part if number % 2 else escape_message(part) for number, part in enumerate(parts))


def escape_json(text: str) -> str:
    """Return a JSON document that means the same and is printable.

    A lone surrogate, which is a byte that was not UTF-8, becomes U+FFFD: RFC 8259 has no encoding for it.
    """
    return _UNPRINTABLE.sub(_escape_json_match, _SURROGATE.sub("\ufffd", text))


def _escape_json_match(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
