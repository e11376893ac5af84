from __future__ import annotations

import pytest

from buildkit_tasks.printable import escape_message, escape_unprintable
from buildkit_tasks.report.text import last_line, tail_lines, to_one_line


def test_escape_unprintable() -> None:
    assert escape_unprintable("a\tb\r\nc\rd\x1b\x9b\u202e\udc80\U0001f600é") == (
        "a\tb\nc\\x0dd\\x1b\\x9b\\u202e\\udc80\U0001f600é"
    )
    assert escape_unprintable("##[x] ### [y]") == "#\\x23[x] ### [y]"
    assert to_one_line(" a\nb\tc ") == "a\\nb c"


def test_last_line() -> None:
    assert last_line("one\n two \n \n\n") == "two"
    assert last_line(" \n") == ""


def test_tail_lines() -> None:
    assert tail_lines("a\nb\n", 2) == ["a", "b"]
    assert tail_lines("a\nb\nc", 2)[0].startswith("(1 lines before")


@pytest.mark.parametrize(
    "code",
    [
        0xAD, 0x34F, 0x61C, 0x115F, 0x180E, 0x200B, 0x200D, 0x200F, 0x202A, 0x2060, 0x2066, 0x206F, 0x3164,
        0xFE00, 0xFEFF, 0xFFA0, 0xFFF9, 0xE0001, 0xE0061, 0xE01EF,
    ],
)  # fmt: skip
def test_characters_without_width(code: int) -> None:
    escaped = escape_unprintable(f"a{chr(code)}b")
    assert escaped == f"a{chr(code)!a}b".replace("'", "")
    assert escaped.isascii()


def test_emoji_are_kept() -> None:
    assert escape_unprintable("✔\ufe0f 😀 ⚠\ufe0e") == "✔\ufe0f 😀 ⚠\ufe0e"


@pytest.mark.parametrize("blanks", ["", " ", "\t", "\u3000", "\u00a0 "])
def test_no_line_is_a_workflow_command(blanks: str) -> None:
    text = f"x ::error::\n{blanks}::stop-commands::x\r\n{blanks}::add-mask::y"
    assert escape_message(text) == f"x ::error::\n{blanks}\\x3a:stop-commands::x\n{blanks}\\x3a:add-mask::y"


def test_workflow_command_after_escape() -> None:
    assert escape_message("\r::error::x\u2028::y") == "\\x0d::error::x\\u2028::y"
