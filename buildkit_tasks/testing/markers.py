"""The markers ``platforms`` and ``images`` of a test: what they name, and whether it has an effect."""

from __future__ import annotations

import contextlib
import re
import unittest
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

__all__ = ["check_has_effect", "has_unittest_class", "locate_errors", "read_marker_names"]

_EXAMPLES = {"platforms": "linux/arm64", "images": "web"}
_FIXTURES = {"platforms": "platform or run_on_platform", "images": "multiarch_image or run_on_platform"}


@contextlib.contextmanager
def locate_errors(item: pytest.Item) -> Iterator[None]:
    """Let the message of a :class:`UsageError` begin with the file and the line of the test."""
    try:
        yield
    except UsageError as error:
        path, line, _ = item.location
        raise UsageError(f"{path}:{(line or 0) + 1}: {error.message}", hint=error.hint) from None


def read_marker_names(item: pytest.Item, marker: str) -> list[str]:
    """Return the names that the test's markers have, which accept lists and commas as the options do.

    Raises :class:`UsageError` for a marker that has a keyword or names nothing.
    """
    return [name for mark in item.iter_markers(marker) for name in _read_names(mark)]


def _read_names(mark: pytest.Mark) -> list[str]:
    if mark.kwargs:
        keyword, value = next(iter(mark.kwargs.items()))
        raise UsageError(
            f"the marker {mark.name} has no argument {keyword!r}: it takes names",
            hint=f"@pytest.mark.{mark.name}({value!r})",
        )
    texts = [text for argument in mark.args for text in _list_texts(mark, argument)]
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"the marker {mark.name} names nothing", hint=_example(mark))
    return names


def _list_texts(mark: pytest.Mark, argument: object) -> Iterator[str]:
    for value in argument if isinstance(argument, list | tuple) else (argument,):
        if not isinstance(value, str | Platform):
            raise UsageError(
                f"the marker {mark.name} has {value!r}, which is not a name", hint=_example(mark)
            )
        yield str(value)


def _example(mark: pytest.Mark) -> str:
    return f'@pytest.mark.{mark.name}("{_EXAMPLES[mark.name]}")'


def check_has_effect(item: pytest.Item, marker: str, fixtures: Iterable[str]) -> None:
    """Raise :class:`UsageError` if the test has the marker, but depends on none of the fixtures.

    Without these fixtures, a suite that declares a marker of that name itself may use it as it likes.
    """
    has_fixture = not set(fixtures).isdisjoint(getattr(item, "fixturenames", ()))
    if item.get_closest_marker(marker) is None or (not has_fixture and _is_redeclared(item.config, marker)):
        return
    if has_unittest_class(item):
        raise UsageError(
            f"the marker {marker} has no effect on a unittest.TestCase: pytest runs its methods once",
            hint="write a plain class, whose methods take fixtures as arguments",
        )
    if not has_fixture:
        raise UsageError(
            f"the marker {marker} has no effect: the test does not take {_FIXTURES[marker]}",
            hint="add run_on_platform to the test's arguments, or remove the marker",
        )


def _is_redeclared(config: pytest.Config, marker: str) -> bool:
    """Return True if the suite or another plugin declares a marker of this name, too."""
    return [re.split("[:(]", line)[0].strip() for line in config.getini("markers")].count(marker) > 1


def has_unittest_class(item: pytest.Item) -> bool:
    """Return True for a method of a ``unittest.TestCase``, which pytest cannot parametrize."""
    test_class = getattr(item, "cls", None)
    return isinstance(test_class, type) and issubclass(test_class, unittest.TestCase)
