"""Parser for the ``WWW-Authenticate`` header (RFC 9110, sections 11.3 and 11.6.1).

The header is a list of challenges, each a scheme with a token68 or with parameters::

    Negotiate YWJj, Bearer realm="https://auth.example/token",service="registry"

Commas separate both challenges and parameters, and may occur in quoted strings. The parser makes one pass
from left to right and raises a :class:`RegistryError` for anything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Challenge", "parse_challenges"]

_MAX_HEADER_LENGTH = 16384
_MAX_CHALLENGES = 16
_MAX_PARAMETERS = 32

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[ \t]+([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|\Z)")
# What may follow a scheme: its first parameter, a comma or the end.
_AFTER_SCHEME = re.compile(r"[ \t]+(?=[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=)|[ \t]*(?=,|\Z)")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
# Tabs, spaces, visible ASCII and obs-text; a backslash escapes the next character.
_QUOTED_STRING = re.compile(r'"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*)"')
_QUOTED_PAIR = re.compile(r"\\(.)")
_WHITESPACE = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A scheme and its parameters; the scheme and the parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse_challenges(text: str) -> tuple[Challenge, ...]:
    """Return the challenges of a header in order; several header lines are joined with commas."""
    if len(text) > _MAX_HEADER_LENGTH:
        raise RegistryError(
            f"a WWW-Authenticate header of {len(text)} characters is longer than {_MAX_HEADER_LENGTH}"
        )
    challenges: list[tuple[str, dict[str, str] | None]] = []
    for name, value in _iter_items(text):
        if value is None:
            challenges.append((name, {}))
        elif not name:
            challenges[-1] = (challenges[-1][0], None)  # a token68; no parameter may follow
        else:
            _add_parameter(challenges, name, value)
        if len(challenges) > _MAX_CHALLENGES:
            raise _header_error(f"more than {_MAX_CHALLENGES} challenges")
    return tuple(Challenge(scheme=scheme, parameters=parameters or {}) for scheme, parameters in challenges)


def _add_parameter(challenges: list[tuple[str, dict[str, str] | None]], name: str, value: str) -> None:
    parameters = challenges[-1][1] if challenges else None
    if parameters is None:
        raise _header_error(f"parameter {name!r} without a scheme")
    if name in parameters:  # parsers would disagree about which one counts
        raise _header_error(f"duplicate parameter {name!r}")
    if len(parameters) >= _MAX_PARAMETERS:
        raise _header_error(f"more than {_MAX_PARAMETERS} parameters")
    parameters[name] = value


def _iter_items(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield (name, None) for a scheme, ("", text) for its token68 and (name, value) for a parameter."""
    position = _skip_pattern(_SEPARATORS, text, 0)
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise _header_error(f"expected a scheme or a parameter at {text[position : position + 20]!r}")
        equals = _EQUALS.match(text, token.end())
        if equals is not None:
            value, position = _read_value(text, equals.end())
            yield token[0].lower(), value
            position = _skip_separator(text, position)
            continue
        yield token[0].lower(), None
        token68 = _TOKEN68.match(text, token.end())
        if token68 is not None:
            yield "", token68[1]
        elif not _AFTER_SCHEME.match(text, token.end()):
            raise _header_error(f"unexpected {text[token.end() : token.end() + 20]!r} after a scheme")
        position = _skip_pattern(_SEPARATORS, text, token.end() if token68 is None else token68.end())


def _read_value(text: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED_STRING.match(text, position)
    if quoted is not None:
        return _QUOTED_PAIR.sub(r"\1", quoted[1]), quoted.end()
    token = _TOKEN.match(text, position)
    if token is None:
        raise _header_error(f"expected a value at {text[position : position + 20]!r}")
    return token[0], token.end()


def _skip_separator(text: str, position: int) -> int:
    """Skip the comma after a parameter; it may be missing at the end only."""
    position = _skip_pattern(_WHITESPACE, text, position)
    if position < len(text) and text[position] != ",":
        raise _header_error(f"expected a comma at {text[position : position + 20]!r}")
    return _skip_pattern(_SEPARATORS, text, position)


def _skip_pattern(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()


def _header_error(reason: str) -> RegistryError:
    return RegistryError(f"invalid WWW-Authenticate header: {reason}")
