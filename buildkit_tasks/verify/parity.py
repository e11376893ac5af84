"""Check that the platforms of an image are the same program: what they start, and their files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import FileNode, FileType, iter_names, printable_path
from buildkit_tasks.platforms import MACHINES
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.rootfs import RootFs
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Platform

__all__ = ["ParityChecker"]

_COMPARED_FIELDS = {
    "entrypoint": "ENTRYPOINT",
    "cmd": "CMD",
    "user": "USER",
    "working_dir": "WORKDIR",
    "env": "ENV",
}
_MAX_DIRECTORY_NAMES = 200_000  # a directory with more is not compared by name
_MAX_EXAMPLES = 5


class ParityChecker:
    """Compares each platform with the first one.

    Names of architectures in file names, as in ``ld-musl-x86_64.so.1``, are ignored. Directories that two
    platforms have from a common layer are skipped. ``is_failure`` makes a difference a failure instead of
    a warning.
    """

    def __init__(self, *, is_failure: bool) -> None:
        self._is_failure = is_failure
        self._reference: _PlatformFiles | None = None

    def check_platform(
        self, platform: Platform, config: ImageConfig | None, rootfs: RootFs
    ) -> Iterator[Check]:
        """Yield the ``parity`` checks of the next platform; none for the first."""
        current = _PlatformFiles(platform, config, rootfs.root)
        if self._reference is None:
            self._reference = current
            return
        differences = [*_diff_settings(self._reference, current), *_diff_files(self._reference, current)]
        for expected, actual, difference in differences:
            yield Check(
                name="parity", ok=not self._is_failure, warning=not self._is_failure, expected=expected,
                actual=actual, message=f"{platform} {difference}",
            )  # fmt: skip
        if not differences:
            message = f"it starts the same and has the files of {self._reference.platform}"
            yield Check(name="parity", ok=True, message=message)


@dataclass(frozen=True, slots=True)
class _PlatformFiles:
    """The configuration and the files of one platform."""

    platform: Platform
    config: ImageConfig | None
    root: FileNode

    def list_names(self, directory: FileNode) -> dict[str, FileNode | None]:
        """Return the nodes in a directory by name, without the architecture's name.

        The name of a directory ends in a slash.
        """
        arch_pattern = _architecture_pattern(self.platform.architecture)
        return {
            arch_pattern.sub("{arch}", name) + _directory_suffix(node): node
            for name, node in iter_names(directory)
        }


_Difference = tuple[str, str, str]  # value of the first platform, value of this one, description


def _diff_settings(reference: _PlatformFiles, current: _PlatformFiles) -> Iterator[_Difference]:
    if reference.config is None or current.config is None:
        return
    for name, label in _COMPARED_FIELDS.items():
        expected, actual = getattr(reference.config, name), getattr(current.config, name)
        if expected != actual:
            values = _format_value(expected), _format_value(actual)
            yield *values, f"has {label} {values[1]}; {reference.platform} has {values[0]}"


def _format_value(value: str | tuple[str, ...]) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _diff_files(reference: _PlatformFiles, current: _PlatformFiles) -> Iterator[_Difference]:
    missing, extra, large = map(_format_examples, _compare_trees(reference, current))
    if missing:
        yield missing, "missing", f"lacks {missing}, which {reference.platform} has"
    if extra:
        yield "missing", extra, f"has {extra}, which {reference.platform} lacks"
    if large:
        text = f"or {reference.platform} has more than {_MAX_DIRECTORY_NAMES} files in {large}"
        yield "", "", f"{text}: they were not compared by name"


def _compare_trees(
    reference: _PlatformFiles, current: _PlatformFiles
) -> tuple[list[str], list[str], list[str]]:
    """Return paths that only the first has, paths that only the second has, and too large directories."""
    missing, extra, large = [], [], []
    pending = [("/", reference.root, current.root)]
    while pending:
        path, *directories = pending.pop()
        if directories[0] is directories[1]:
            continue
        if max(map(_count_names, directories)) > _MAX_DIRECTORY_NAMES:
            large.append(path)
            continue
        reference_names, current_names = (
            files.list_names(directory)
            for files, directory in zip((reference, current), directories, strict=True)
        )
        missing += [path + name for name in reference_names.keys() - current_names.keys()]
        extra += [path + name for name in current_names.keys() - reference_names.keys()]
        for name in reference_names.keys() & current_names.keys():
            reference_node, current_node = reference_names[name], current_names[name]
            if name.endswith("/") and reference_node is not None and current_node is not None:
                pending.append((f"{path}{name}", reference_node, current_node))
    return missing, extra, large


def _directory_suffix(node: FileNode | None) -> str:
    return "/" if node is not None and node.type is FileType.DIRECTORY else ""


def _count_names(directory: FileNode) -> int:
    return len(directory.children) + sum(len(names) for names in directory.packed_names)


def _format_examples(paths: list[str]) -> str:
    names = ", ".join(map(printable_path, sorted(paths)[:_MAX_EXAMPLES]))
    return f"{names} and {len(paths) - _MAX_EXAMPLES} more" if len(paths) > _MAX_EXAMPLES else names


@cache
def _architecture_pattern(architecture: str) -> re.Pattern[str]:
    """Return a pattern of all names of the architecture in file names, the longest first."""
    names = {architecture}
    for machine in (each for each in MACHINES if each.architecture == architecture):
        names |= {machine.debian_architecture, machine.qemu_suffix}
        names.update(machine.multiarch_triplets, machine.uname_machines)
        names.update(level.debian_architecture for level in machine.isa_levels)
        names.update(path.rpartition("/")[2] for path in machine.elf_interpreters)
    alternatives = sorted(names - {""}, key=len, reverse=True)
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, alternatives))})(?![A-Za-z0-9])")
