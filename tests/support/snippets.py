"""Find the code in Markdown pages: fenced blocks, and the shell commands in blocks and in running text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

_FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *(\S*)(.*)\n(?:(.*\n)*?)\1\2`*~* *$", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PUNCTUATION = frozenset("();<>|&")
PROMPT = "$ "


def pages() -> list[Path]:
    """Return every Markdown page of the repository, generated ones included."""
    patterns = ("*.md", "docs/*.md", "examples/**/*.md", "changelog.d/*.md", ".github/**/*.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: ``language`` is the first word after the fence, ``argument`` what follows it."""

    page: str
    line: int
    language: str
    argument: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class ShellCommand:
    """A simple command of a shell: its words and the variables that precede them."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, match.start()) + 1,
            language=match[3],
            argument=match[4].strip(),
            text="".join(line.removeprefix(match[1]) for line in match[0].splitlines(keepends=True)[1:-1]),
        )
        for match in _FENCE.finditer(text)
    ]


def inline_code(page: Path) -> Iterator[str]:
    """Yield the code in the running text of a page, each on one line."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in _INLINE.finditer(text):
        yield " ".join(match[1].split())


def shell_script(text: str) -> str:
    """Return what is typed: the lines after a prompt if there is one, without prompts and output."""
    lines = text.splitlines(keepends=True)
    if any(line.startswith(PROMPT) for line in lines):
        return "".join(line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT))
    return text


def shell_commands(script: str) -> Iterator[ShellCommand]:
    """Yield the simple commands of a script, those of lists, pipes, subshells and substitutions included."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        tokens = iter(lexer)
        for token in tokens:
            if not set(token) <= _PUNCTUATION:
                words.append(token)
            elif set(token) & set("<>"):
                next(tokens, None)  # the file of a redirection
            else:
                yield from _simple_command(words)
                words = []
        yield from _simple_command(words)


def _simple_command(words: list[str]) -> Iterator[ShellCommand]:
    count = next((at for at, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    if words[count:]:
        variables = (word.partition("=") for word in words[:count])
        env = tuple((name, value) for name, _, value in variables)
        yield ShellCommand(argv=tuple(words[count:]), env=env)
