from __future__ import annotations

from buildkit_tasks.report.text import escape_unprintable, last_line, tail_lines, to_one_line


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
