"""Find the base images of a Dockerfile: the image references that a build pulls.

Parses only what that needs (FROM, ARG, COPY --from, RUN --mount; see the Dockerfile reference). Errors in a
Dockerfile are left to BuildKit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BaseImages", "parse_base_images"]

_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)")
_COPY_FROM = re.compile(r"--from=(\S+)", re.IGNORECASE)
_MOUNT_FROM = re.compile(r"--mount=\S*?\bfrom=([^\s,]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImages:
    """The images that a Dockerfile names, as written, and its frontend of ``# syntax=``, if any."""

    images: tuple[str, ...]
    syntax: str = ""


def parse_base_images(text: str, build_args: Mapping[str, str]) -> BaseImages:
    """Return the images of FROM, COPY --from and RUN --mount=from, without stages and ``scratch``."""
    directives = _parse_directives(text)
    stage_names: set[str] = {"scratch", "context"}
    images: dict[str, None] = {}
    arg_values: dict[str, str] = {}
    for instruction, args_text in _iter_instructions(text, directives.get("escape", "\\")):
        if instruction == "ARG" and not images:
            arg_values |= _parse_arg(args_text, build_args)
        elif instruction == "FROM":
            image, stage = _parse_from(args_text, arg_values)
            if image.lower() not in stage_names:
                images[image] = None
            stage_names.add(stage.lower())
        elif instruction in ("COPY", "ADD", "RUN"):
            images |= dict.fromkeys(
                name for name in _find_source_images(args_text) if name.lower() not in stage_names
            )
    return BaseImages(images=tuple(images), syntax=directives.get("syntax", ""))


def _parse_directives(text: str) -> dict[str, str]:
    """Return the parser directives: comments ``# NAME=VALUE`` at the beginning."""
    matches = map(_DIRECTIVE.match, text.removeprefix("\ufeff").splitlines())
    return {match[1].lower(): match[2] for match in takewhile(bool, matches) if match}


def _iter_instructions(text: str, escape: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction with its arguments joined into one line, without comments."""
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    joined_text = re.sub(re.escape(escape) + r"[ \t]*\n", " ", "\n".join(lines))
    for line in joined_text.splitlines():
        instruction, _, args_text = line.strip().partition(" ")
        yield instruction.upper(), args_text.strip()


def _parse_arg(args_text: str, build_args: Mapping[str, str]) -> dict[str, str]:
    pairs = (item.partition("=") for item in args_text.split())
    return {name: build_args.get(name, value.strip("\"'")) for name, _, value in pairs}


def _parse_from(args_text: str, arg_values: Mapping[str, str]) -> tuple[str, str]:
    """Return the image and the stage's name, or "", of a FROM line."""
    tokens = [token for token in args_text.split() if not token.startswith("--")]
    image = _expand_variables(tokens[0], arg_values) if tokens else "scratch"
    has_stage_name = len(tokens) >= 3 and tokens[1].lower() == "as"  # noqa: PLR2004 - IMAGE AS NAME
    return image, tokens[2] if has_stage_name else ""


def _expand_variables(token: str, arg_values: Mapping[str, str]) -> str:
    def substitute(match: re.Match[str]) -> str:
        name = match["braced"] or match["bare"]
        return arg_values.get(name) or match["default"] or ""

    return _VARIABLE.sub(substitute, token).strip("\"'")


def _find_source_images(args_text: str) -> list[str]:
    """Return the images, not the stages' numbers, that files are copied or mounted from."""
    references = [*_COPY_FROM.findall(args_text), *_MOUNT_FROM.findall(args_text)]
    return [reference for reference in references if not reference.isdigit() and "$" not in reference]
