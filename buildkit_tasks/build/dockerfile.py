"""Find the base images of a Dockerfile: the image references that a build pulls, and for which platforms.

Parses only what that needs (FROM, ARG, COPY --from, RUN --mount; see the Dockerfile reference). Errors in a
Dockerfile are left to BuildKit.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BaseImages", "BaseUse", "Stage", "parse_base_images"]

_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)")
_COPY_FROM = re.compile(r"--from=(\S+)", re.IGNORECASE)
_NOT_PULLED = ("scratch", "context")
# Searched from the start of a word only, or many `--mount=` in one would take quadratic time.
_MOUNT_FROM = re.compile(r"(?<!\S)--mount=\S*?\bfrom=([^\s,]+)", re.IGNORECASE)
_MAX_EXPANDED = 4096  # characters; no name of an image or stage is as long
_MAX_STAGE_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage as written, variables included: ``FROM --platform=PLATFORM BASE AS NAME``.

    ``sources`` are the stages and images that its instructions copy or mount files from.
    """

    base: str
    platform: str = ""
    name: str = ""
    sources: tuple[str, ...] = ()

    def with_platform(self, platform: str) -> str:
        """Return the line of this stage with another ``--platform``."""
        return f"FROM --platform={platform} {self.base}{f' AS {self.name}' if self.name else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseUse:
    """A base image that is pulled for a platform, by this stage; ``is_source`` if it only copies from it."""

    image: str
    platform: Platform
    stage: Stage
    is_source: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImages:
    """The images that a Dockerfile names, as written, and its frontend of ``# syntax=``, if any.

    ``arguments`` are the values of ARG instructions before the first stage. ``target`` is the name or number
    of the stage that is built; "" is the last one.
    """

    images: tuple[str, ...]
    syntax: str = ""
    stages: tuple[Stage, ...] = field(default=(), compare=False)
    arguments: Mapping[str, str] = field(default_factory=dict, compare=False)
    target: str = field(default="", compare=False)
    _stage_indexes: dict[str, list[int]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for index, stage in enumerate(self.stages):
            if stage.name:
                self._stage_indexes.setdefault(stage.name.lower(), []).append(index)

    def list_uses(self, platform: Platform, build_platform: Platform) -> tuple[BaseUse, ...]:
        """Return the base images of the build for a platform, on a machine of ``build_platform``.

        Only what the target stage needs counts: BuildKit skips the other stages. A platform that is not valid
        is left to BuildKit.
        """
        last = len(self.stages) - 1
        index = self._find_stage(self.target, len(self.stages)) if self.target else last
        variables = {
            **self.arguments,
            **_platform_arguments("TARGET", platform),
            **_platform_arguments("BUILD", build_platform),
        }
        stages = self._needed_stages(last if index is None else index, variables)
        return tuple(use for each in stages for use in self._stage_uses(each, platform, variables))

    def _needed_stages(self, index: int, variables: Mapping[str, str]) -> Iterator[int]:
        """Yield, each once, the index of a stage and of those that it needs, which are all before it."""
        pending, seen = [index] if index >= 0 else [], set()
        while pending:
            index = pending.pop()
            if index in seen:
                continue
            seen.add(index)
            yield index
            names = (self.stages[index].base, *self.stages[index].sources)
            needed = [self._find_stage(_expand_variables(name, variables), index) for name in names]
            pending += [each for each in reversed(needed) if each is not None and each not in seen]

    def _find_stage(self, name: str, before: int) -> int | None:
        """Return the index of the last stage of that name, or with that number, before a stage."""
        if name.isdecimal() and len(name) <= _MAX_STAGE_DIGITS and int(name) < before:
            return int(name)
        indexes = self._stage_indexes.get(name.lower(), [])
        position = bisect.bisect_left(indexes, before)
        return indexes[position - 1] if position else None

    def _stage_uses(self, index: int, platform: Platform, variables: Mapping[str, str]) -> Iterator[BaseUse]:
        stage = self.stages[index]
        stage_platform = _parse_platform(_expand_variables(stage.platform, variables)) or platform
        # Files are copied from the image of the target platform, whatever the stage's own is.
        for name, each in ((stage.base, stage_platform), *((source, platform) for source in stage.sources)):
            image = _expand_variables(name, variables)
            if self._find_stage(image, index) is None and image.lower() not in _NOT_PULLED:
                yield BaseUse(image=image, platform=each, stage=stage, is_source=name != stage.base)


def _platform_arguments(prefix: str, platform: Platform) -> dict[str, str]:
    """Return the arguments that BuildKit sets (Dockerfile reference, "Automatic platform ARGs")."""
    values = {"PLATFORM": str(platform), "OS": platform.os, "ARCH": platform.architecture}
    return {f"{prefix}{name}": value for name, value in (*values.items(), ("VARIANT", platform.variant))}


def _parse_platform(text: str) -> Platform | None:
    try:
        return Platform.parse(text)
    except UsageError:
        return None


def parse_base_images(text: str, build_args: Mapping[str, str]) -> BaseImages:
    """Return the images of FROM, COPY --from and RUN --mount=from, without stages and ``scratch``."""
    directives = _parse_directives(text)
    stage_names = set(_NOT_PULLED)
    images: dict[str, None] = {}
    stages: list[Stage] = []
    sources_of_stages: list[list[str]] = []
    arg_values: dict[str, str] = {}
    for instruction, args_text in _iter_instructions(text, directives.get("escape", "\\")):
        if instruction == "ARG" and not stages:
            arg_values |= _parse_arg(args_text, build_args)
        elif instruction == "FROM":
            stages.append(_parse_from(args_text))
            sources_of_stages.append([])
            image = _expand_variables(stages[-1].base, arg_values)
            if image.lower() not in stage_names:
                images[image] = None
            stage_names.add(stages[-1].name.lower())
        elif instruction in ("COPY", "ADD", "RUN"):
            sources = _find_sources(args_text)
            if stages:
                sources_of_stages[-1] += sources
            images |= dict.fromkeys(
                name for name in sources if name.lower() not in stage_names and not name.isdigit()
            )
    return BaseImages(
        images=tuple(images),
        syntax=directives.get("syntax", ""),
        stages=tuple(
            replace(stage, sources=tuple(sources))
            for stage, sources in zip(stages, sources_of_stages, strict=True)
        ),
        arguments=arg_values,
    )


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


def _parse_from(args_text: str) -> Stage:
    """Return the stage that a FROM line begins."""
    flags = [token for token in args_text.split() if token.startswith("--")]
    tokens = [token for token in args_text.split() if not token.startswith("--")]
    has_stage_name = len(tokens) >= 3 and tokens[1].lower() == "as"  # noqa: PLR2004 - IMAGE AS NAME
    return Stage(
        base=tokens[0] if tokens else "scratch",
        platform="".join(re.findall(r"--platform=(\S+)", " ".join(flags))[-1:]),
        name=tokens[2] if has_stage_name else "",
    )


def _expand_variables(token: str, arg_values: Mapping[str, str]) -> str:
    """Return a word with its variables expanded, or unchanged if it is too long for a name."""
    remaining = _MAX_EXPANDED

    def substitute(match: re.Match[str]) -> str:
        nonlocal remaining
        name = match["braced"] or match["bare"]
        value = arg_values.get(name) or match["default"] or ""
        remaining -= len(value)
        return value if remaining >= 0 else ""

    return _VARIABLE.sub(substitute, token).strip("\"'") if len(token) <= _MAX_EXPANDED else token


def _find_sources(args_text: str) -> list[str]:
    """Return the images and stages that files are copied or mounted from."""
    references = [*_COPY_FROM.findall(args_text), *_MOUNT_FROM.findall(args_text)]
    return [reference for reference in references if "$" not in reference]
