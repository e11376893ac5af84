"""JSON as an image may carry it: one meaning or none.

RFC 8259 leaves duplicate keys, huge numbers and deep nesting to the reader, and readers differ;
an image that means one thing to a checker and another to an engine is refused here instead.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["load_object", "reject_case_variants"]

MAX_DEPTH = 64
_MAX_DIGITS = 19  # of a 64-bit integer; Python alone would take thousands, in quadratic time

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_DEPTH_CHANGE = {"{": 1, "[": 1, "}": -1, "]": -1}


def load_object(data: bytes, description: str) -> dict[str, Any]:
    """The JSON object in ``data``; ``what`` names the document in messages.

    Raises :class:`MalformedImage` for anything that is not exactly one object in UTF-8, has a key
    twice, NaN or Infinity, an integer past 64 bits, a lone surrogate, or more than 64 levels.
    """
    try:
        return _decode_object(data)
    except UnicodeError:
        raise MalformedImage(f"{description} is not UTF-8") from None
    except ValueError as error:
        raise MalformedImage(f"{description} is not the JSON of an image: {error}") from None


def reject_case_variants(document: Iterable[str], names: Iterable[str], description: str) -> None:
    """Refuse ``Layers`` where ``layers`` is known: Go's JSON reader takes one for the other."""
    known = {name.lower(): name for name in names}
    for key in document:
        expected = known.get(key.lower(), key)
        if expected != key:
            raise MalformedImage(f"{description} has the key {key!r}, which is {expected!r} in other letters")


def _decode_object(data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8")
    _check_depth(text)
    document = json.loads(
        text,
        object_pairs_hook=_reject_duplicate_keys,
        parse_constant=_reject_constant,
        parse_int=_parse_bounded_int,
        parse_float=_parse_finite_float,
    )
    if not isinstance(document, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - load_object turns it into MalformedImage
    # An escaped lone surrogate parses, and then no report could be written.
    json.dumps(document, ensure_ascii=False).encode("utf-8")
    return document


def _check_depth(text: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += _DEPTH_CHANGE.get(match[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests more than {MAX_DEPTH} levels deep")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {duplicate!r} appears twice")
    return document


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _parse_bounded_int(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _parse_finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is past every limit")
    return value
