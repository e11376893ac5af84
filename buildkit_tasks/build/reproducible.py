"""Reproducible builds: choose ``SOURCE_DATE_EPOCH`` and clamp the timestamps in layers to it.

``SOURCE_DATE_EPOCH`` (https://reproducible-builds.org/specs/source-date-epoch) is in seconds since 1970.
BuildKit takes it as a build argument for the timestamps in configurations and histories. It clamps the
timestamps of files in layers only with the exporter attribute ``rewrite-timestamp``. buildx passes the
variable on; it neither sets it nor adds that attribute.
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
_MAX_EPOCH = 253402300799  # 9999-12-31T23:59:59Z, the last second that RFC 3339 can express
_GIT_SECONDS = 10.0
# A repository's own configuration may name programs: one for signatures, and the other end of a remote.
_GIT_ENVIRONMENT = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "log.showSignature",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_NO_LAZY_FETCH": "1",
}
# local and tar outputs have no layers: BuildKit sets the timestamps of their files without the attribute.
_LAYERED_TYPES = ("image", "registry", "oci", "docker")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDateEpoch:
    """Seconds since 1970, and where they come from, as text for the user."""

    seconds: int
    origin: str


def find_explicit_epoch(build_args: Iterable[str], environ: Mapping[str, str]) -> SourceDateEpoch | None:
    """Return the epoch of a build argument, else of the environment, else None. An empty variable is unset.

    Raises :class:`UsageError` for an argument and :class:`SettingsError` for a variable that is not valid.
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
            f"{label}: {text!r} is not a valid number of seconds since 1970",
            hint=f"{SOURCE_DATE_EPOCH}=$(git log -1 --format=%ct)",
        )
    return int(text)


def resolve_epoch(
    context: str, build_args: Iterable[str], environ: Mapping[str, str], commands: CommandRunner
) -> SourceDateEpoch:
    """Return the epoch for a build of a folder: the explicit one, else of its git commit, else 0.

    The commit is the one that is checked out, not the last one that changed the folder: a shallow clone, as
    in CI, does not have that one and would give a different epoch than a full clone.
    """
    explicit_epoch = find_explicit_epoch(build_args, environ)
    if explicit_epoch is not None:
        return explicit_epoch
    from buildkit_tasks.system.command import CommandOptions

    try:
        result = commands.run(
            ["git", "-C", context, "log", "-1", "--format=%ct"],
            CommandOptions(timeout=_GIT_SECONDS, env=_GIT_ENVIRONMENT),
        )
    except EngineError:
        return SourceDateEpoch(seconds=0, origin="git is not installed")
    text = result.stdout.strip()
    if result.ok and _EPOCH_DIGITS.match(text):
        return SourceDateEpoch(seconds=int(text), origin="the last git commit")
    return SourceDateEpoch(seconds=0, origin=f"no git commit: {result.reason}")


def rewrite_timestamps(outputs: Iterable[OutputSpec]) -> tuple[OutputSpec, ...]:
    """Return the outputs with ``rewrite-timestamp=true`` where they have layers and do not set it."""
    return tuple(
        output.with_attribute("rewrite-timestamp", "true")
        if output.type in _LAYERED_TYPES and not output.get("rewrite-timestamp")
        else output
        for output in outputs
    )


def check_rewrite_timestamps(outputs: Iterable[OutputSpec], driver: str) -> None:
    """Raise :class:`UsageError` if the engine's own builder would store a reproducible image.

    It unpacks what it stores and cannot rewrite it. What it pushes goes through an archive, where it can.
    """
    for output in outputs:
        is_stored = output.type in _LAYERED_TYPES and output.dest is None and not output.is_pushed
        if driver == "docker" and is_stored:
            raise UsageError(
                f"-o {output}: the engine's own builder cannot rewrite timestamps in what it stores",
                hint="-o type=oci,dest=dist/image.tar",
            )
