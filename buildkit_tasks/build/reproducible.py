"""The same bytes from the same source: the one time that a build may know, and who gives it.

``SOURCE_DATE_EPOCH`` (reproducible-builds.org/specs/source-date-epoch) is in seconds since 1970. BuildKit
takes it as a build argument for the times in configurations and histories; the times of files in layers
are clamped to it only with the exporter option ``rewrite-timestamp``. buildx passes the variable on by
itself; what it does not do is to set it, and to ask for the times of files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError, SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildkit_tasks.build.outputs import OutputSpec
    from buildkit_tasks.system.command import CommandRunner

__all__ = [
    "SOURCE_DATE_EPOCH",
    "SourceDateEpoch",
    "check_rewrite_timestamps",
    "find_explicit_epoch",
    "resolve_epoch",
    "rewrite_timestamps",
]

SOURCE_DATE_EPOCH = "SOURCE_DATE_EPOCH"
_EPOCH_DIGITS = re.compile(r"[0-9]{1,12}\Z", re.ASCII)
_MAX_EPOCH = 253402300799  # the last second of 9999, which is where JSON's times end
_GIT_SECONDS = 10.0
# Those whose layers may be rewritten. local and tar have no layers: BuildKit sets their files' times anyway.
_LAYERED_TYPES = ("image", "registry", "oci", "docker")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDateEpoch:
    """Seconds since 1970, and in words where they come from."""

    seconds: int
    origin: str


def find_explicit_epoch(build_args: Iterable[str], environ: Mapping[str, str]) -> SourceDateEpoch | None:
    """The time that somebody gave: a build argument, else the environment; an empty one is none.

    Raises :class:`UsageError` for a bad argument and :class:`SettingsError` for a bad variable.
    """
    for argument in build_args:
        name, separator, value = argument.partition("=")
        if name == SOURCE_DATE_EPOCH and separator:
            return SourceDateEpoch(
                seconds=_parse_seconds(value, f"--build-arg {SOURCE_DATE_EPOCH}", UsageError),
                origin="--build-arg",
            )
    text = environ.get(SOURCE_DATE_EPOCH, "")
    if not text:
        return None
    return SourceDateEpoch(
        seconds=_parse_seconds(text, f"environment {SOURCE_DATE_EPOCH}", SettingsError),
        origin="the environment",
    )


def _parse_seconds(text: str, label: str, error: type[UsageError]) -> int:
    if not _EPOCH_DIGITS.match(text) or int(text) > _MAX_EPOCH:
        raise error(
            f"{label}: {text!r} is no number of seconds since 1970",
            hint=f"{SOURCE_DATE_EPOCH}=$(git log -1 --format=%ct)",
        )
    return int(text)


def resolve_epoch(
    context: str, build_args: Iterable[str], environ: Mapping[str, str], commands: CommandRunner
) -> SourceDateEpoch:
    """The time for a build of a folder: the one given, else that of its last git commit, else 0.

    The commit is the one that is checked out, not the last that changed the folder: a shallow clone,
    which is what CI has, knows of no other, and would give another time than a full one.
    """
    explicit_epoch = find_explicit_epoch(build_args, environ)
    if explicit_epoch is not None:
        return explicit_epoch
    from buildkit_tasks.system.command import CommandOptions

    try:
        result = commands.run(
            ["git", "-C", context, "log", "-1", "--format=%ct"], CommandOptions(timeout=_GIT_SECONDS)
        )
    except EngineError:
        return SourceDateEpoch(seconds=0, origin="there is no git here")
    text = result.stdout.strip()
    if result.ok and _EPOCH_DIGITS.match(text):
        return SourceDateEpoch(seconds=int(text), origin="the last git commit")
    return SourceDateEpoch(seconds=0, origin=f"no git commit: {result.reason}")


def rewrite_timestamps(outputs: Iterable[OutputSpec]) -> tuple[OutputSpec, ...]:
    """The outputs with the times in their layers rewritten, unless an output says otherwise."""
    return tuple(
        output.with_attribute("rewrite-timestamp", "true")
        if output.type in _LAYERED_TYPES and not output.get("rewrite-timestamp")
        else output
        for output in outputs
    )


def check_rewrite_timestamps(outputs: Iterable[OutputSpec], driver: str) -> None:
    """Refuse what the engine's own builder cannot do: it unpacks what it stores.

    What it pushes goes through an archive, in which it can.
    """
    for output in outputs:
        is_stored = output.type in _LAYERED_TYPES and output.dest is None and not output.is_pushed
        if driver == "docker" and is_stored:
            raise UsageError(
                f"-o {output}: the engine's own builder cannot rewrite times in what it stores",
                hint="--push, -o type=oci,dest=dist/image.tar, or --driver=docker-container",
            )
