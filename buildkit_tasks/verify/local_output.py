"""Verify a local output: the files of each platform, which have no index and no configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.rootfs import FileType, RootFs
from buildkit_tasks.oci.layers.tar import DIRECTORY, REGULAR, SYMLINK, TarEntry
from buildkit_tasks.oci.layers.tree_builder import TreeBuilder
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.transports.directory import (
    DirectoryEntry,
    find_platform_dirs,
    walk_directory,
)
from buildkit_tasks.report.model import Check, PlatformVerdict, VerifyReport
from buildkit_tasks.verify.host_match import baseline_for, match_host
from buildkit_tasks.verify.index import check_expected_platform, check_missing_platform
from buildkit_tasks.verify.rootfs import RootfsVerifier, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.platforms import Platform

__all__ = ["verify_local_output"]

_TAR_TYPES = {FileType.FILE: REGULAR, FileType.DIRECTORY: DIRECTORY, FileType.SYMLINK: SYMLINK}
_DEVICE_TYPE = "3"  # whatever is neither of those


def verify_local_output(
    path: Path, expected: Sequence[Platform], subject: str, options: VerifyOptions | None = None
) -> VerifyReport:
    """Check a local output against the exact platforms ``expected``; if empty, against its folders.

    Raises :class:`UsageError` for files of one platform of which nobody says which it is.
    """
    directories = _find_directories(path, expected)
    present, verifier = [platform for platform, _ in directories], RootfsVerifier(options or VerifyOptions())
    verdicts = []
    if options is not None and options.hosts:
        for host, node_count in options.hosts.items():
            selected, check = match_host(host, present, subject, node_count)
            paths = [directory for platform, directory in directories if platform == selected]
            baseline = baseline_for(host, selected)
            content_checks = _check_directory(paths[0], verifier, baseline) if baseline is not None else ()
            verdicts.append(PlatformVerdict(platform=str(host), digest="", checks=(check, *content_checks)))
        return VerifyReport(subject=subject, digest="", platforms=tuple(verdicts))
    for target in dict.fromkeys((*expected, *present)):
        paths = [directory for platform, directory in directories if platform == target]
        checks_by_path = [_check_directory(directory, verifier, target) for directory in paths]
        platform_checks = (
            (check_expected_platform(target, expected), *checks_by_path[0])
            if checks_by_path
            else (check_missing_platform(target, present),)
        )
        verdicts.append(PlatformVerdict(platform=str(target), digest="", checks=tuple(platform_checks)))
    return VerifyReport(subject=subject, digest="", platforms=tuple(verdicts))


def _find_directories(path: Path, expected: Sequence[Platform]) -> list[tuple[Platform, Path]]:
    directories = find_platform_dirs(path)
    if len(directories) == 1 and directories[0][0] is None:
        if len(expected) != 1:
            raise UsageError(
                f"which platform's files {path} holds is not said", hint="--platform linux/arm64"
            )
        return [(expected[0], path)]
    return [(platform, directory) for platform, directory in directories if platform is not None]


def _check_directory(directory: Path, verifier: RootfsVerifier, platform: Platform) -> tuple[Check, ...]:
    builder = TreeBuilder(_DirectoryReader(directory), str(directory), LIMITS)
    try:
        builder.read_entries()
    except (MalformedImage, LimitExceeded) as error:
        return (Check(name="integrity", ok=False, message=error.message),)
    return tuple(verifier.check_platform(platform, None, RootFs(builder.root)))


class _DirectoryReader:
    """A folder read as a layer's archive would be: entry by entry, each file's bytes on demand."""

    def __init__(self, directory: Path) -> None:
        self._entries = walk_directory(directory)
        self._current: DirectoryEntry | None = None
        self._file: BinaryIO | None = None

    def __iter__(self) -> Iterator[TarEntry]:
        for entry in self._entries:
            self._current = entry
            yield TarEntry(
                entry.name, _TAR_TYPES.get(entry.kind, _DEVICE_TYPE), entry.size, entry.target, entry.mode, 0
            )  # fmt: skip
            if self._file is not None:
                self._file.close()
                self._file = None

    def read(self, limit: int) -> bytes:
        """The next bytes of the current file."""
        return self._open_current().read(limit)

    def peek(self, limit: int) -> bytes:
        """The same bytes, which are given again."""
        file = self._open_current()
        data = file.read(limit)
        file.seek(-len(data), os.SEEK_CUR)
        return data

    def _open_current(self) -> BinaryIO:
        if self._file is None:
            assert self._current is not None  # noqa: S101 - for the type checker: an entry was given
            self._file = self._current.open()
        return self._file
