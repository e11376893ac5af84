"""Verify a local output: the files of each platform, which have no index and no configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.rootfs import RootFs
from buildkit_tasks.oci.layers.tar import DIRECTORY, REGULAR, SYMLINK, Entry
from buildkit_tasks.oci.layers.tree_builder import TreeBuilder
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.transports.directory import EntryKind, FolderEntry, local_platforms, walk_folder
from buildkit_tasks.report.model import Check, PlatformVerdict, VerifyReport
from buildkit_tasks.verify.host_match import fit_check, promised_to
from buildkit_tasks.verify.index import expected_check, missing_check
from buildkit_tasks.verify.rootfs import Contents, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.platforms import Platform

__all__ = ["verify_folder"]

_TYPES = {EntryKind.FILE: REGULAR, EntryKind.FOLDER: DIRECTORY, EntryKind.SYMLINK: SYMLINK}
_DEVICE = "3"  # whatever is neither of those


def verify_folder(
    path: Path, expected: Sequence[Platform], subject: str, rules: Rules | None = None
) -> VerifyReport:
    """Check a local output against the exact platforms ``expected``; if empty, against its folders.

    Raises :class:`UsageError` for files of one platform of which nobody says which it is.
    """
    found = _found(path, expected)
    held, contents = [platform for platform, _ in found], Contents(rules or Rules())
    verdicts = []
    if rules is not None and rules.hosts:
        for host, nodes in rules.hosts.items():
            chosen, check = fit_check(host, held, subject, nodes)
            places = [place for platform, place in found if platform == chosen]
            judged = promised_to(host, chosen)
            more = _checks(places[0], contents, judged) if judged is not None else ()
            verdicts.append(PlatformVerdict(platform=str(host), digest="", checks=(check, *more)))
        return VerifyReport(subject=subject, digest="", platforms=tuple(verdicts))
    for wanted in dict.fromkeys((*expected, *held)):
        places = [place for platform, place in found if platform == wanted]
        checks = [_checks(place, contents, wanted) for place in places]
        known = (expected_check(wanted, expected), *checks[0]) if checks else (missing_check(wanted, held),)
        verdicts.append(PlatformVerdict(platform=str(wanted), digest="", checks=tuple(known)))
    return VerifyReport(subject=subject, digest="", platforms=tuple(verdicts))


def _found(path: Path, expected: Sequence[Platform]) -> list[tuple[Platform, Path]]:
    found = local_platforms(path)
    if len(found) == 1 and found[0][0] is None:
        if len(expected) != 1:
            raise UsageError(
                f"which platform's files {path} holds is not said", hint="--platform linux/arm64"
            )
        return [(expected[0], path)]
    return [(platform, place) for platform, place in found if platform is not None]


def _checks(place: Path, contents: Contents, platform: Platform) -> tuple[Check, ...]:
    tree = TreeBuilder(_FolderReader(place), str(place), LIMITS)
    try:
        tree.fill()
    except (MalformedImage, LimitExceeded) as error:
        return (Check(name="integrity", ok=False, message=error.message),)
    return tuple(contents.checks(platform, None, RootFs(tree.root)))


class _FolderReader:
    """A folder read as a layer's archive would be: entry by entry, each file's bytes on demand."""

    def __init__(self, place: Path) -> None:
        self._entries = walk_folder(place)
        self._current: FolderEntry | None = None
        self._file: BinaryIO | None = None

    def __iter__(self) -> Iterator[Entry]:
        for found in self._entries:
            self._current = found
            yield Entry(
                found.name, _TYPES.get(found.kind, _DEVICE), found.size, found.target, found.mode, 0
            )  # fmt: skip
            if self._file is not None:
                self._file.close()
                self._file = None

    def read(self, limit: int) -> bytes:
        """The next bytes of the current file."""
        return self._opened().read(limit)

    def peek(self, limit: int) -> bytes:
        """The same bytes, which are given again."""
        file = self._opened()
        data = file.read(limit)
        file.seek(-len(data), os.SEEK_CUR)
        return data

    def _opened(self) -> BinaryIO:
        if self._file is None:
            assert self._current is not None  # noqa: S101 - for the type checker: an entry was given
            self._file = self._current.open()
        return self._file
