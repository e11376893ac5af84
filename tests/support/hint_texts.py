"""The texts of the package that can be hints, read from its source, with the commands in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import buildkit_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["docker_commands", "hint_options", "task_commands", "texts_of_source"]

_PACKAGE = Path(buildkit_tasks.__file__).parent
_END = r"(?=, | or inv | and | then | && | < | \(|[;)`']|$)"  # of a command in a sentence
_TASK_COMMAND = re.compile(rf"\binv ((?:--)?[a-z].*?){_END}")
_DOCKER_COMMAND = re.compile(rf"(?<![\w./-])docker ((?:buildx|login|context(?! x)|pull|ps) .*?){_END}")
_FOREIGN_COMMAND = re.compile(
    r"\b(?:inv|docker|sed|dos2unix|df|ls|rm|skopeo|apt-get|pip|pytest|git|kubectl|RUN|export|modprobe) "
    rf".*?{_END}"
)
_OPTION = re.compile(r"(?<![\w=-])--?[a-z][a-z-]*")


def texts_of_source() -> Iterator[tuple[str, str]]:
    """Yield ``(place, text)`` of each string of the package that is not a docstring; a value is ``x``."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in _list_strings(tree):
            yield f"{path.relative_to(_PACKAGE)}:{node.lineno}", _read_text(node)


def _list_strings(tree: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    parts = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        if (is_text and id(node) not in docstrings) or isinstance(node, ast.JoinedStr):
            yield node  # type: ignore[misc]


def _read_text(node: ast.expr) -> str:
    """Return the text with ``x`` for each value; a value without a blank before it may be empty."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    text = ""
    for part in node.values if isinstance(node, ast.JoinedStr) else ():
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif not text[-1:].isalnum() and "' '.join(" not in ast.unparse(part):
            text += "x"
    return text


def task_commands(text: str) -> list[str]:
    """Return the arguments of each ``inv`` in a text."""
    return _TASK_COMMAND.findall(text)


def docker_commands(text: str) -> list[str]:
    """Return the arguments of each ``docker`` in a text."""
    return _DOCKER_COMMAND.findall(text)


def hint_options() -> Iterator[tuple[str, str]]:
    """Yield ``(place, option)`` for each option that a hint names without a command."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                place = f"{path.relative_to(_PACKAGE)}:{node.value.lineno}"
                for string in _list_strings(node.value):
                    yield from ((place, option) for option in _options_alone(_read_text(string)))


def _options_alone(text: str) -> list[str]:
    return _OPTION.findall(_FOREIGN_COMMAND.sub("", text))
