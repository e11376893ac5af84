"""What a server wants before it answers: the ``WWW-Authenticate`` header as values.

RFC 9110, sections 11.3 and 11.6.1: a list of challenges, each a scheme with a token68 or with
parameters; commas part both the challenges and the parameters, and may stand in quoted strings. One
pass from left to right; whatever does not fit is a :class:`RegistryError`, for a registry sent it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Challenge", "parse_challenges"]

_MAX_TEXT = 16384
_MAX_CHALLENGES = 16
_MAX_PARAMETERS = 32

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[ \t]+([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|\Z)")
# After a scheme: its first parameter, or nothing.
_GOES_ON = re.compile(r"[ \t]+(?=[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=)|[ \t]*(?=,|\Z)")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
# Tabs, blanks, visible ASCII and obs-text; a backslash takes the next character as it is.
_QUOTED = re.compile(r'"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*)"')
_ESCAPED = re.compile(r"\\(.)")
_BLANKS = re.compile(r"[ \t]*")
_BLANKS_AND_COMMAS = re.compile(r"[ \t,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A scheme and its parameters; schemes and names of parameters are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)


def parse_challenges(text: str) -> tuple[Challenge, ...]:
    """Every challenge of a header, in its order; of several header lines, joined by commas."""
    if len(text) > _MAX_TEXT:
        raise RegistryError(f"a WWW-Authenticate header of {len(text)} characters; {_MAX_TEXT} are read")
    found: list[tuple[str, dict[str, str] | None]] = []
    for name, value in _items(text):
        if value is None:
            found.append((name, {}))
        elif not name:
            found[-1] = (found[-1][0], None)  # a token68: no parameter may follow
        else:
            _add(found, name, value)
        if len(found) > _MAX_CHALLENGES:
            raise RegistryError(f"a WWW-Authenticate header with more than {_MAX_CHALLENGES} challenges")
    return tuple(Challenge(scheme=scheme, parameters=parameters or {}) for scheme, parameters in found)


def _add(found: list[tuple[str, dict[str, str] | None]], name: str, value: str) -> None:
    parameters = found[-1][1] if found else None
    if parameters is None:
        raise _error(f"the parameter {name!r} belongs to no scheme")
    if name in parameters:  # readers would differ about which one counts
        raise _error(f"the parameter {name!r} is there twice")
    if len(parameters) >= _MAX_PARAMETERS:
        raise _error(f"a challenge has more than {_MAX_PARAMETERS} parameters")
    parameters[name] = value


def _items(text: str) -> Iterator[tuple[str, str | None]]:
    """A scheme is (name, None), its token68 ("", text), a parameter (name, value)."""
    at = _skip(_BLANKS_AND_COMMAS, text, 0)
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _error(f"{text[at : at + 20]!r} stands where a scheme or a parameter should")
        equals = _EQUALS.match(text, token.end())
        if equals is not None:
            value, at = _value(text, equals.end())
            yield token[0].lower(), value
            at = _skip_separator(text, at)
            continue
        yield token[0].lower(), None
        whole = _TOKEN68.match(text, token.end())
        if whole is not None:
            yield "", whole[1]
        elif not _GOES_ON.match(text, token.end()):
            raise _error(f"{text[token.end() : token.end() + 20]!r} follows a scheme")
        at = _skip(_BLANKS_AND_COMMAS, text, token.end() if whole is None else whole.end())


def _value(text: str, at: int) -> tuple[str, int]:
    quoted = _QUOTED.match(text, at)
    if quoted is not None:
        return _ESCAPED.sub(r"\1", quoted[1]), quoted.end()
    token = _TOKEN.match(text, at)
    if token is None:
        raise _error(f"{text[at : at + 20]!r} is no value")
    return token[0], token.end()


def _skip_separator(text: str, at: int) -> int:
    """After a parameter comes a comma or the end."""
    at = _skip(_BLANKS, text, at)
    if at < len(text) and text[at] != ",":
        raise _error(f"{text[at : at + 20]!r} stands where a comma should")
    return _skip(_BLANKS_AND_COMMAS, text, at)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _error(why: str) -> RegistryError:
    return RegistryError(f"a WWW-Authenticate header that cannot be read: {why}")
