"""Parse JSON strictly: reject what parsers interpret differently.

RFC 8259 leaves duplicate keys, large numbers and deep nesting to the implementation (RFC 7493, I-JSON,
restricts them). A document that a verifier and an engine could read differently is malformed here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from buildkit_tasks.errors import MalformedImage

__all__ = ["load_object"]

MAX_DEPTH = 64
_MAX_DIGITS = 19  # of a 64-bit integer; Python parses thousands of digits, in quadratic time

# A string that does not end takes the rest of the text, since looking for its end at every quote would be
# quadratic.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_DEPTH_CHANGE = {"{": 1, "[": 1, "}": -1, "]": -1}


def load_object(data: bytes, description: str) -> dict[str, Any]:
    """Parse the JSON object in ``data``; ``description`` names the document in messages.

    Raises :class:`MalformedImage` unless ``data`` is exactly one object in UTF-8, and for a duplicate
    key, NaN or Infinity, an integer of more than 19 digits, a lone surrogate, or more than 64 levels.
    """
    try:
        return _decode_object(data)
    except UnicodeError:
        raise MalformedImage(f"{description} is not UTF-8") from None
    except ValueError as error:
        raise MalformedImage(f"{description} is not valid JSON: {error}") from None


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
        raise ValueError("it is not an object")  # noqa: TRY004 - load_object turns it into MalformedImage
    # json.loads accepts an escaped lone surrogate, which no report could contain.
    json.dumps(document, ensure_ascii=False).encode("utf-8")
    return document


def _check_depth(text: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += _DEPTH_CHANGE.get(match[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        if depth <= 0:
            return  # the document ends here


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {duplicate!r} appears twice")
    return document


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_bounded_int(digits: str) -> int:
    count = len(digits.lstrip("-"))
    if count > _MAX_DIGITS:
        raise ValueError(f"an integer has {count} digits; at most {_MAX_DIGITS} are allowed")
    return int(digits)


def _parse_finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large for a double")
    return value
