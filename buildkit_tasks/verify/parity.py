"""Whether the platforms of an image are the same program: what they start, and which files they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from buildkit_tasks.oci.rootfs import paths_of, printable_path
from buildkit_tasks.platforms import MACHINES
from buildkit_tasks.results import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.oci.rootfs import RootFs
    from buildkit_tasks.platforms import Platform

__all__ = ["Parity"]

_FIELDS = {"entrypoint": "ENTRYPOINT", "cmd": "CMD", "user": "USER", "working_dir": "WORKDIR", "env": "ENV"}
_MAX_PATHS = 300_000  # of one platform, compared by name
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class _Reference:
    platform: Platform
    config: ImageConfig | None
    paths: dict[str, None]


class Parity:
    """Compares each platform with the first one; only that one's paths are kept.

    A path in which one architecture's name stands, such as ``/lib/ld-musl-x86_64.so.1``, is compared
    with the name taken out. ``fails`` makes a difference a failure instead of a warning.
    """

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        self._reference: _Reference | None = None

    def checks(self, platform: Platform, config: ImageConfig | None, rootfs: RootFs) -> Iterator[Check]:
        """The check ``parity`` of one more platform; none for the first."""
        paths = dict.fromkeys(islice(_neutral_paths(rootfs, platform), _MAX_PATHS + 1))
        if self._reference is None:
            self._reference = _Reference(platform, config, paths)
            return
        first = self._reference
        differences = [*_settings(first, config), *_files(first.paths, paths, str(first.platform))]
        for theirs, ours, difference in differences:
            yield Check(
                name="parity", ok=not self._fails, warning=not self._fails, expected=theirs, actual=ours,
                message=f"{platform} {difference}",
            )  # fmt: skip
        if not differences:
            yield Check(
                name="parity", ok=True, message=f"starts the same and has the files of {first.platform}"
            )


_Difference = tuple[str, str, str]  # what the first platform has, what this one has, the words


def _settings(first: _Reference, config: ImageConfig | None) -> Iterator[_Difference]:
    if first.config is None or config is None:
        return
    for name, label in _FIELDS.items():
        theirs, ours = getattr(first.config, name), getattr(config, name)
        if theirs != ours:
            pair = _shown(theirs), _shown(ours)
            yield *pair, f"has {label} {pair[1]}; {first.platform} has {pair[0]}"


def _shown(value: str | tuple[str, ...]) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _files(theirs: dict[str, None], ours: dict[str, None], first: str) -> Iterator[_Difference]:
    if max(len(theirs), len(ours)) > _MAX_PATHS:
        yield "", "", f"or {first} has more than {_MAX_PATHS} files: their names were not compared"
        return
    if missing := theirs.keys() - ours.keys():
        yield _some(missing), "missing", f"lacks {_some(missing)}, which {first} has"
    if extra := ours.keys() - theirs.keys():
        yield "missing", _some(extra), f"has {_some(extra)}, which {first} lacks"


def _some(paths: set[str]) -> str:
    names = ", ".join(map(printable_path, sorted(paths)[:_EXAMPLES]))
    return f"{names} and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else names


def _neutral_paths(rootfs: RootFs, platform: Platform) -> Iterator[str]:
    names = _names_in_paths(platform.architecture)
    for path in paths_of(rootfs.root):
        yield names.sub("{arch}", path)


@cache
def _names_in_paths(architecture: str) -> re.Pattern[str]:
    """Every name that the architecture has in paths, the longest first."""
    row = next((each for each in MACHINES if each.architecture == architecture), None)
    loaders = [path.rpartition("/")[2] for path in row.loaders] if row else []
    found = {*row.multiarch, *row.uname, row.debian, row.qemu, *_debian(row), *loaders} if row else set()
    words = sorted({architecture, *found} - {""}, key=len, reverse=True)
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, words))})(?![A-Za-z0-9])")


def _debian(row: object) -> set[str]:
    return {variant.debian for variant in getattr(row, "variants", ())}
