"""Parse CI pipelines from the documentation and fill in their expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def parse_yaml(text: str) -> Any:
    """Parse a YAML document. Every scalar is a string, so that ``on`` is not a boolean."""
    return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - BaseLoader creates strings, lists and dicts only


def fill_expressions(value: Any, values: Mapping[str, str]) -> Any:
    """Return the text with each ``${{ expression }}`` replaced by its value; unknown ones are an error."""
    if isinstance(value, dict):
        return {key: fill_expressions(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [fill_expressions(each, values) for each in value]
    return _EXPRESSION.sub(lambda match: values[match[1]], value)
