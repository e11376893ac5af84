"""Pipelines of CI systems as documents show them: read without a YAML parser, their steps run as jobs.

What is read is the part of YAML that such pages use: maps, lists, plain and quoted scalars, lists in
brackets, and blocks after ``|`` and ``>-``. Anything else is an error, and so is bad indentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KEY = re.compile(r"(?P<key>[A-Za-z][\w.-]*):(?: +(?P<value>\S.*))?\Z")
_EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
_BLOCKS = {"|": "\n", ">-": " "}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page that are written in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def read(text: str) -> Any:
    """The document that is in the text. Raises :class:`ValueError` with the line that is wrong."""
    lines = [
        (number, len(line) - len(line.lstrip()), line.strip())
        for number, line in enumerate(text.splitlines(), 1)
    ]
    reader = _Reader(lines=lines)
    found = reader.value(0)
    if reader.at != len(lines):
        raise reader.wrong("is not indented as what stands above it")
    return found


def filled(value: Any, values: Mapping[str, str]) -> Any:
    """The same with each ``${{ expression }}`` replaced by what is known of it; others are an error."""
    if isinstance(value, dict):
        return {key: filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, values) for each in value]
    return _EXPRESSION.sub(lambda match: values[match[1]], value)


@dataclass(kw_only=True)
class _Reader:
    lines: list[tuple[int, int, str]]
    at: int = field(default=0)

    def wrong(self, why: str) -> ValueError:
        number, _, text = self.lines[min(self.at, len(self.lines) - 1)]
        return ValueError(f"line {number} {why}: {text!r}")

    def value(self, indent: int) -> Any:
        """The map or list that begins here."""
        if self._here(indent) is None:
            raise self.wrong("is where a map or a list is wanted")
        return self._list(indent) if self._here(indent, "- ") else self._map(indent)

    def _here(self, indent: int, prefix: str = "") -> str | None:
        """The line, if it is indented just so and begins so."""
        if self.at == len(self.lines):
            return None
        _, found, text = self.lines[self.at]
        return text if found == indent and text.startswith(prefix) and text else None

    def _list(self, indent: int) -> list[Any]:
        items = []
        while (text := self._here(indent, "- ")) is not None:
            rest = text[2:].lstrip()
            inner = indent + len(text) - len(rest)
            if _KEY.match(rest):  # a map, whose first key stands behind the dash
                number, _, _ = self.lines[self.at]
                self.lines[self.at] = (number, inner, rest)
                items.append(self._map(inner))
            else:
                self.at += 1
                items.append(self._scalar(rest, indent))
        return items

    def _map(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (text := self._here(indent)) is not None and not text.startswith("- "):
            match = _KEY.match(text)
            if match is None or match["key"] in found:
                raise self.wrong("is no key, or one that is there twice")
            self.at += 1
            if match["value"] is not None:
                found[match["key"]] = self._scalar(match["value"], indent)
            elif self.at < len(self.lines) and self.lines[self.at][1] > indent:
                found[match["key"]] = self.value(self.lines[self.at][1])
            else:
                raise self.wrong("has nothing under the key above it")
        return found

    def _scalar(self, text: str, indent: int) -> Any:
        if text in _BLOCKS:
            return self._block(_BLOCKS[text], indent)
        if text.startswith("["):
            if not text.endswith("]"):
                raise self.wrong("follows a list that is not closed")
            return [self._scalar(each.strip(), indent) for each in text[1:-1].split(",")]
        if text[0] in "\"'":
            if len(text) < 2 or text[-1] != text[0] or text[0] in text[1:-1]:
                raise self.wrong("follows a text that is not closed")
            return text[1:-1]
        if text[0] in "&*!|>{}%@`,]#" or ": " in text or " #" in text:
            raise self.wrong("follows a text that must be quoted")
        return text

    def _block(self, joint: str, indent: int) -> str:
        """The lines that are indented further, without the indentation of the first."""
        first = self.lines[self.at][1] if self.at < len(self.lines) else 0
        found = []
        while self.at < len(self.lines) and self.lines[self.at][1] > indent:
            _, own, text = self.lines[self.at]
            found.append(" " * (own - first) + text)
            self.at += 1
        if not found:
            raise self.wrong("is where a block is wanted")
        return joint.join(found) + ("\n" if joint == "\n" else "")
