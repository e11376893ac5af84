"""Whether the platforms of an image are the same program: what they start, and which files they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import Node, NodeType, names_in, printable_path
from buildkit_tasks.platforms import MACHINES
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.rootfs import RootFs
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Platform

__all__ = ["Parity"]

_FIELDS = {"entrypoint": "ENTRYPOINT", "cmd": "CMD", "user": "USER", "working_dir": "WORKDIR", "env": "ENV"}
_MAX_NAMES = 200_000  # in one folder, compared by name
_EXAMPLES = 5


class Parity:
    """Compares each platform with the first one.

    A name that holds an architecture's, such as ``ld-musl-x86_64.so.1``, is compared without it.
    Folders that platforms have from common layers are not gone through. ``fails`` makes a difference a
    failure instead of a warning.
    """

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        self._first: _Side | None = None

    def checks(self, platform: Platform, config: ImageConfig | None, rootfs: RootFs) -> Iterator[Check]:
        """The check ``parity`` of one more platform; none for the first."""
        this = _Side(platform, config, rootfs.root)
        if self._first is None:
            self._first = this
            return
        differences = [*_settings(self._first, this), *_files(self._first, this)]
        for theirs, ours, difference in differences:
            yield Check(
                name="parity", ok=not self._fails, warning=not self._fails, expected=theirs, actual=ours,
                message=f"{platform} {difference}",
            )  # fmt: skip
        if not differences:
            yield Check(
                name="parity",
                ok=True,
                message=f"it starts the same and has the files of {self._first.platform}",
            )


@dataclass(frozen=True, slots=True)
class _Side:
    """One platform: what it starts, and its files."""

    platform: Platform
    config: ImageConfig | None
    root: Node

    def names(self, folder: Node) -> dict[str, Node | None]:
        """The names in one of its folders, without the architecture's; a folder's ends in a slash."""
        own = _names_of(self.platform.architecture)
        return {own.sub("{arch}", name) + _slash(node): node for name, node in names_in(folder)}


_Difference = tuple[str, str, str]  # what the first platform has, what this one has, the words


def _settings(first: _Side, this: _Side) -> Iterator[_Difference]:
    if first.config is None or this.config is None:
        return
    for name, label in _FIELDS.items():
        theirs, ours = getattr(first.config, name), getattr(this.config, name)
        if theirs != ours:
            pair = _shown(theirs), _shown(ours)
            yield *pair, f"has {label} {pair[1]}; {first.platform} has {pair[0]}"


def _shown(value: str | tuple[str, ...]) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _files(first: _Side, this: _Side) -> Iterator[_Difference]:
    missing, extra, large = _compared(first, this)
    if missing:
        yield _some(missing), "missing", f"lacks {_some(missing)}, which {first.platform} has"
    if extra:
        yield "missing", _some(extra), f"has {_some(extra)}, which {first.platform} lacks"
    if large:
        what = f"or {first.platform} has more than {_MAX_NAMES} files in {_some(large)}"
        yield "", "", f"{what}: they were not compared by name"


def _compared(first: _Side, this: _Side) -> tuple[list[str], list[str], list[str]]:
    """Paths that only the first has, that only this one has, and folders too large to tell."""
    missing, extra, large = [], [], []
    todo = [("/", first.root, this.root)]
    while todo:
        path, theirs, ours = todo.pop()
        if theirs is ours:
            continue
        if max(_size(theirs), _size(ours)) > _MAX_NAMES:
            large.append(path)
            continue
        there, here = first.names(theirs), this.names(ours)
        missing += [path + name for name in there.keys() - here.keys()]
        extra += [path + name for name in here.keys() - there.keys()]
        for name in there.keys() & here.keys():
            one, other = there[name], here[name]
            if name.endswith("/") and one is not None and other is not None:
                todo.append((f"{path}{name}", one, other))
    return missing, extra, large


def _slash(node: Node | None) -> str:
    return "/" if node is not None and node.type is NodeType.FOLDER else ""


def _size(folder: Node) -> int:
    return len(folder.children) + sum(len(names) for names in folder.plain)


def _some(paths: list[str]) -> str:
    names = ", ".join(map(printable_path, sorted(paths)[:_EXAMPLES]))
    return f"{names} and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else names


@cache
def _names_of(architecture: str) -> re.Pattern[str]:
    """Every name that the architecture has in file names, the longest first."""
    row = next((each for each in MACHINES if each.architecture == architecture), None)
    found = {architecture}
    if row is not None:
        loaders = [path.rpartition("/")[2] for path in row.loaders]
        debian = [row.debian, *(level.debian for level in row.ladder)]
        found.update((*row.multiarch, *row.uname, *debian, row.qemu, *loaders))
    words = sorted(found - {""}, key=len, reverse=True)
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, words))})(?![A-Za-z0-9])")
