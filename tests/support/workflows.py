"""Pipelines of CI systems as documents show them, read as text alone, their expressions filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page that are written in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def read(text: str) -> Any:
    """The document that is in the text; every scalar is a text, so that ``on`` is no truth."""
    return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it makes texts, lists and maps alone


def filled(value: Any, values: Mapping[str, str]) -> Any:
    """The same with each ``${{ expression }}`` replaced by what is known of it; others are an error."""
    if isinstance(value, dict):
        return {key: filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, values) for each in value]
    return _EXPRESSION.sub(lambda match: values[match[1]], value)
