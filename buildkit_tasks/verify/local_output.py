"""Verify a local output (``type=local``): files of each platform, without an index or configurations."""

from __future__ import annotations

import contextlib
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
from buildkit_tasks.verify.host_match import baseline_for, match_hosts
from buildkit_tasks.verify.index import check_expected_platform, check_missing_platform
from buildkit_tasks.verify.progress import VerifyProgress
from buildkit_tasks.verify.rootfs import RootfsVerifier, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from buildkit_tasks.platforms import Platform

__all__ = ["verify_local_output"]

_TAR_TYPES = {FileType.FILE: REGULAR, FileType.DIRECTORY: DIRECTORY, FileType.SYMLINK: SYMLINK}
_DEVICE_TYPE = "3"  # stands for every other type


def verify_local_output(  # noqa: PLR0913 - options have defaults
    path: Path,
    expected: Sequence[Platform],
    subject: str,
    options: VerifyOptions | None = None,
    *,
    built_for: Platform | None = None,
    progress: VerifyProgress | None = None,
) -> VerifyReport:
    """Check that a local output has exactly the ``expected`` platforms, if any, and check their files.

    ``built_for`` is the platform that an output of one platform was built for, if that is known; otherwise
    the only expected one is taken for it. ``progress`` is updated meanwhile. Raises :class:`UsageError` if
    there is neither.
    """
    progress = progress or VerifyProgress(subject=subject, activity="")
    options, directories = options or VerifyOptions(), _find_directories(path, expected, built_for)
    verifier = RootfsVerifier(options)
    if options.hosts:
        progress.names = tuple(map(str, options.hosts))
        verdicts = _verify_hosts(directories, verifier, subject, options.hosts)
    else:
        progress.names = tuple(map(str, dict.fromkeys((*expected, *directories))))
        verdicts = _verify_platforms(directories, verifier, expected)
    progress.activity = f"reading {path}"
    for verdict in verdicts:
        progress.verdicts.append(verdict)
    return VerifyReport(subject=subject, digest="", platforms=tuple(progress.verdicts))


def _find_directories(
    path: Path, expected: Sequence[Platform], built_for: Platform | None
) -> dict[Platform, Path]:
    directories = find_platform_dirs(path)
    if built_for is not None and len(directories) == 1 and directories[0][1] == path:
        return {built_for: path}  # whatever the folder is called
    if len(directories) == 1 and directories[0][0] is None:
        if len(expected) != 1:
            # No platform is proposed: files without binaries would pass as any.
            raise UsageError(
                f"cannot tell which platform the folder {path} was built for: name it by --platform, or "
                "build an image, which states it",
                hint="inv build-multiarch -o type=oci,dest=dist/image.tar",
            )
        return {expected[0]: path}
    by_platform: dict[Platform, Path] = {}
    for platform, directory in directories:
        if platform is not None:
            by_platform.setdefault(platform, directory)
    return by_platform


def _verify_hosts(
    directories: Mapping[Platform, Path],
    verifier: RootfsVerifier,
    subject: str,
    hosts: Mapping[Platform, int],
) -> Iterator[PlatformVerdict]:
    for host, (selected, check) in match_hosts(hosts, tuple(directories), subject).items():
        checks = [check]
        baseline = baseline_for(host, selected)
        if selected is not None and baseline is not None:
            checks += _check_directory(directories[selected], verifier, baseline)
        yield PlatformVerdict(platform=str(host), digest="", checks=tuple(checks))


def _verify_platforms(
    directories: Mapping[Platform, Path], verifier: RootfsVerifier, expected: Sequence[Platform]
) -> Iterator[PlatformVerdict]:
    for target in dict.fromkeys((*expected, *directories)):
        if target in directories:
            checks = [check_expected_platform(target, expected)]
            checks += _check_directory(directories[target], verifier, target)
        else:
            checks = [check_missing_platform(target, tuple(directories))]
        yield PlatformVerdict(platform=str(target), digest="", checks=tuple(checks))


def _check_directory(directory: Path, verifier: RootfsVerifier, platform: Platform) -> tuple[Check, ...]:
    reader = _DirectoryReader(directory)
    builder = TreeBuilder(reader, str(directory), LIMITS)
    try:
        with contextlib.closing(reader):
            builder.read_entries()
    except (MalformedImage, LimitExceeded) as error:
        return (Check(name="integrity", ok=False, message=error.message),)
    return tuple(verifier.check_platform(platform, None, RootFs(builder.root)))


class _DirectoryReader:
    """Presents a directory as the entries of a layer; a file is opened when its data are read."""

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
            self.close()

    def close(self) -> None:
        """Close the current file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, limit: int) -> bytes:
        """Return the next bytes of the current file."""
        return self._open_current().read(limit)

    def peek(self, limit: int) -> bytes:
        """Return the next bytes of the current file without consuming them."""
        file = self._open_current()
        data = file.read(limit)
        file.seek(-len(data), os.SEEK_CUR)
        return data

    def _open_current(self) -> BinaryIO:
        if self._file is None:
            assert self._current is not None  # noqa: S101 - for the type checker: iteration has begun
            self._file = self._current.open()
        return self._file
