"""What a Dockerfile starts from: the image references that a build would fetch.

Reads as much of the Dockerfile reference ("FROM", "ARG", "COPY --from", "RUN --mount") as is needed
to know the bases; BuildKit remains the judge of everything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Bases", "read_bases"]

_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)")
_FROM_OPTION = re.compile(r"--from=(\S+)", re.IGNORECASE)
_MOUNT_FROM = re.compile(r"--mount=\S*?\bfrom=([^\s,]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """The images that a Dockerfile names, as written, and its ``# syntax=`` front end if any."""

    images: tuple[str, ...]
    syntax: str = ""


def read_bases(text: str, build_args: Mapping[str, str]) -> Bases:
    """The images of FROM, COPY --from and RUN --mount=from, without stages and ``scratch``."""
    directives = _directives(text)
    stages: set[str] = {"scratch", "context"}
    images: dict[str, None] = {}
    arguments: dict[str, str] = {}
    for word, rest in _instructions(text, directives.get("escape", "\\")):
        if word == "ARG" and not images:
            arguments |= _declared(rest, build_args)
        elif word == "FROM":
            image, stage = _from(rest, arguments)
            if image.lower() not in stages:
                images[image] = None
            stages.add(stage.lower())
        elif word in ("COPY", "ADD", "RUN"):
            images |= dict.fromkeys(name for name in _sources(rest) if name.lower() not in stages)
    return Bases(images=tuple(images), syntax=directives.get("syntax", ""))


def _directives(text: str) -> dict[str, str]:
    """The parser directives: comments NAME=VALUE before anything else."""
    matches = map(_DIRECTIVE.match, text.removeprefix("\ufeff").splitlines())
    return {match[1].lower(): match[2] for match in takewhile(bool, matches) if match}


def _instructions(text: str, escape: str) -> Iterator[tuple[str, str]]:
    """Each instruction with its arguments on one line; comments and blank lines left out."""
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    whole = re.sub(re.escape(escape) + r"[ \t]*\n", " ", "\n".join(lines))
    for line in whole.splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word.upper(), rest.strip()


def _declared(rest: str, build_args: Mapping[str, str]) -> dict[str, str]:
    pairs = (item.partition("=") for item in rest.split())
    return {name: build_args.get(name, value.strip("\"'")) for name, _, value in pairs}


def _from(rest: str, arguments: Mapping[str, str]) -> tuple[str, str]:
    """The image and the stage name of a FROM line."""
    words = [word for word in rest.split() if not word.startswith("--")]
    image = _expanded(words[0], arguments) if words else "scratch"
    named = len(words) >= 3 and words[1].lower() == "as"  # noqa: PLR2004 - IMAGE AS NAME
    return image, words[2] if named else ""


def _expanded(word: str, arguments: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["bare"]
        return arguments.get(name) or match["default"] or ""

    return _VARIABLE.sub(value, word).strip("\"'")


def _sources(rest: str) -> list[str]:
    """Images, not stage numbers, that files are copied or mounted from."""
    found = [*_FROM_OPTION.findall(rest), *_MOUNT_FROM.findall(rest)]
    return [name for name in found if not name.isdigit() and "$" not in name]
