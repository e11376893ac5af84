from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from buildkit_tasks.printable import escape_message
from buildkit_tasks.report import to_markdown
from buildkit_tasks.report.text import to_one_line, truncate_line
from tests.support.report_samples import bad_check, bad_run, run, verdict, verify

if TYPE_CHECKING:
    from markdown_it.token import Token

MARKS = st.sampled_from(
    ["|", "`", "```", "~~~", "\n", "\\", "<b>", "<!--", "&lt;", "*", "_", "[x](y)", "# ", "- ", "    "]
)
ANY_TEXT = st.lists(MARKS | st.text(st.characters(exclude_categories=()))).map("".join)


def parse(text: str) -> list[Token]:
    """Parse Markdown as GitHub does: CommonMark with tables and HTML."""
    text.encode()  # a lone surrogate cannot be encoded
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def table_cells(tokens: list[Token]) -> list[str]:
    """Return the text of each cell, which must have no markup."""
    inside = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "td_open"]
    children = [child for token in inside for child in token.children or []]
    assert {child.type for child in children} <= {"text", "text_special"}
    return ["".join(child.content for child in token.children or []) for token in inside]


@given(ANY_TEXT.filter(str.strip), ANY_TEXT)
@example("|", "a | b")
@example("x\\", "\\")
@example("`", "`<script>`")
def test_text_stays_in_cell_and_block(platform: str, stdout: str) -> None:
    tokens = parse(to_markdown(run(bad_run(platform, stdout=stdout, message="m" + stdout))))
    name = truncate_line(to_one_line(platform), 80)
    ran = truncate_line(f"FAILED {to_one_line('m' + stdout.partition(chr(10))[0])}".rstrip(), 48)
    assert table_cells(tokens)[0].strip() == name
    assert table_cells(tokens)[2] == ran
    assert len(table_cells(tokens)) == 4
    assert [token.type for token in tokens if token.type.startswith("html")] == []
    fences = [token.content for token in tokens if token.type == "fence"]
    assert len(fences) == 1
    assert fences[0].endswith(f"stdout:\n{escape_message(stdout)}\n" if stdout else "max\n")


@given(ANY_TEXT.filter(str.strip))
def test_message_adds_no_markup(message: str) -> None:
    plain = parse(to_markdown(verify(verdict("linux/arm64", bad_check(message="m")))))
    tokens = parse(to_markdown(verify(verdict("linux/arm64", bad_check(message=message)))))
    assert [token.type for token in tokens] == [token.type for token in plain]
