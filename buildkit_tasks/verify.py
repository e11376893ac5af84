"""Prove that every platform in an image is what it says.

Four things have to hold: the platforms are the ones expected; the index and each platform's own
configuration agree; what the image starts was made for that platform's machine; and every byte on
the way is what its digest promises. All problems are collected; none ends the others' checks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.binaries.elf import ELF_MAGIC, EXECUTABLE_TYPES, read_elf
from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers import LayerScans, check_diff_id, check_layer_count, flatten
from buildkit_tasks.oci.programs import Program, programs_of
from buildkit_tasks.oci.source import Source, config_of, manifest_of, platform_manifests
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.results import Check, PlatformVerdict, VerifyReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor, ImageConfig, Manifest
    from buildkit_tasks.oci.rootfs import Found

__all__ = ["program_checks", "verify"]

_PROBLEMS = (MalformedImage, LimitExceeded)
_ROWS = {machine.architecture: machine for machine in MACHINES}


def verify(source: Source, expected: Sequence[Platform], subject: str) -> VerifyReport:
    """Check the image against the exact platforms ``expected``; if empty, against what it names.

    Whatever is wrong with the image is a failing check in the report, under the platform that it
    is about (``unknown`` when the image cannot be read that far, ``none`` when it has none).
    Errors of reaching the image, such as a registry's, are raised.
    """
    digest = ""
    try:
        digest = str(source.root().digest)
        found = platform_manifests(source)
    except _PROBLEMS as error:
        names = [str(platform) for platform in expected] or ["unknown"]
        check = Check(name="integrity", ok=False, message=error.message)
        verdicts = [PlatformVerdict(platform=name, digest="", checks=(check,)) for name in names]
        return VerifyReport(subject=subject, digest=digest, platforms=tuple(verdicts))
    run = _Run(source=source, scans=LayerScans(source), expected=tuple(expected), found=found)
    return VerifyReport(subject=subject, digest=digest, platforms=tuple(run.verdicts()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One verification: layers that platforms share are read once in it."""

    source: Source
    scans: LayerScans
    expected: tuple[Platform, ...]
    found: tuple[tuple[Platform, Descriptor], ...]

    def verdicts(self) -> Iterator[PlatformVerdict]:
        """Expected platforms in their order, then the ones that nobody expected."""
        if not self.found and not self.expected:
            check = Check(name="present", ok=False, message="the image holds no platform at all")
            yield PlatformVerdict(platform="none", digest="", checks=(check,))
        present = [platform for platform, _ in self.found]
        for wanted in dict.fromkeys((*self.expected, *present)):
            entries = [entry for platform, entry in self.found if platform == wanted]
            if not entries:
                yield PlatformVerdict(platform=str(wanted), digest="", checks=(self._missing(wanted),))
            for entry in entries:
                checks = tuple(self._checks(wanted, entry))
                yield PlatformVerdict(platform=str(wanted), digest=str(entry.digest), checks=checks)

    def _missing(self, wanted: Platform) -> Check:
        held = _names(platform for platform, _ in self.found) or "no platform"
        near = [p for p, _ in self.found if (p.os, p.architecture) == (wanted.os, wanted.architecture)]
        why = f"; {_variants(wanted, near[0])}" if near else ""
        message = f"{wanted} is not in the image, which holds {held}{why}"
        return Check(name="present", ok=False, expected=str(wanted), actual=held, message=message)

    def _checks(self, platform: Platform, entry: Descriptor) -> Iterator[Check]:
        yield self._present(platform)
        yield self._expected(platform)
        try:
            manifest = manifest_of(self.source, entry)
            config = config_of(self.source, manifest)
        except _PROBLEMS as error:
            yield Check(name="integrity", ok=False, message=error.message)
            return
        yield _config_platform(platform, entry, config)
        broken = list(self._broken_layers(manifest, config))
        yield from broken or self._sound(platform, manifest, config)

    def _present(self, platform: Platform) -> Check:
        # Windows images may name one platform several times, for versions of the system.
        versions = Counter(entry.os_version for each, entry in self.found if each == platform)
        count = max(versions.values())
        message = f"{platform} is in the index {count} times: which one runs is chance" if count > 1 else ""
        return Check(
            name="present", ok=count == 1, expected=str(platform), actual=str(platform), message=message
        )

    def _expected(self, platform: Platform) -> Check:
        ok = not self.expected or platform in self.expected
        wanted = _names(self.expected) if self.expected else "any"
        message = "" if ok else f"{platform} is in the image, but was not expected; expected: {wanted}"
        return Check(name="expected", ok=ok, expected=wanted, actual=str(platform), message=message)

    def _broken_layers(self, manifest: Manifest, config: ImageConfig) -> Iterator[Check]:
        try:
            check_layer_count(manifest, config.diff_ids)
        except MalformedImage as error:
            yield Check(name="integrity", ok=False, message=error.message)
            return
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            try:
                check_diff_id(self.scans.get(layer, diff_id.algorithm), diff_id)
            except _PROBLEMS as error:
                yield Check(name="integrity", ok=False, layer=str(layer.digest), message=error.message)

    def _sound(self, platform: Platform, manifest: Manifest, config: ImageConfig) -> Iterator[Check]:
        try:
            rootfs = flatten(self.source, manifest, self.scans)
        except _PROBLEMS as error:
            yield Check(name="integrity", ok=False, message=error.message)
            return
        count = len(manifest.layers)
        yield Check(name="integrity", ok=True, message=f"{count} layers: digests, sizes and diff_ids hold")
        programs = programs_of(config, rootfs)
        for program in programs:
            yield from program_checks(platform, program)
        if not programs:
            yield Check(name="entrypoint-arch", ok=True, message="no ENTRYPOINT or CMD: nothing to check")


def _config_platform(platform: Platform, entry: Descriptor, config: ImageConfig) -> Check:
    stated, ok, message = config.platform, config.platform == platform, ""
    if entry.platform is None:
        message = "no index states a platform: this is the config's own word"
    elif not ok and _same_machine(platform, stated) and not config.variant:
        # The specification lets a config leave its variant out: that contradicts nothing.
        ok, message = True, f"the index says {platform}; the config states no variant"
    elif not ok:
        why = f": {_variants(platform, stated)}" if _same_machine(platform, stated) else ""
        message = f"the index says {platform}, the config says {stated}{why}"
    return Check(name="config-platform", ok=ok, expected=str(platform), actual=str(stated), message=message)


def _same_machine(one: Platform, other: Platform) -> bool:
    return (one.os, one.architecture) == (other.os, other.architecture)


def _variants(one: Platform, other: Platform) -> str:
    """Say how two variants of one architecture differ; the table lists them oldest first."""
    names = [row.name for row in _ROWS[one.architecture].variants] if one.architecture in _ROWS else []
    pair = [_variant(platform) for platform in (one, other)]
    text = f"the variants differ, {pair[0]} against {pair[1]}"
    if not set(pair) <= set(names):
        return text
    old, new = sorted(pair, key=names.index)
    return f"{text}; programs for {new} may use instructions that a machine of {old} does not have"


def _variant(platform: Platform) -> str:
    row = _ROWS.get(platform.architecture)
    return platform.variant or (row.implied_variant if row else "") or "none"


def program_checks(platform: Platform, program: Program) -> Iterator[Check]:
    """What can be said of one program of an image: it is there, may be run, and fits the platform."""
    machine = _ROWS.get(platform.architecture) if platform.os == "linux" else None
    if program.found is None:
        yield _failing(platform, program.command, program.problem)
    elif not program.found.node.mode & 0o111:
        mode = f"{program.found.node.mode:04o}"
        yield _failing(platform, program.found.path, f"{program.found.path} is not executable (mode {mode})")
    elif machine is None:
        unknown = f"which machine {platform} means is not known here: {program.found.path} was not compared"
        yield _failing(platform, program.found.path, unknown)
    elif not program.found.node.head.startswith(b"#!"):
        yield _arch_check(platform, machine, program.found)


def _arch_check(platform: Platform, machine: Machine, found: Found) -> Check:
    path, node = found
    if not node.head.startswith(ELF_MAGIC):
        start = f"it starts {node.head.hex(' ', 1)}" if node.head else "it is empty"
        return _failing(platform, path, f"{path} is no program, neither ELF nor a #! script: {start}")
    try:
        header = read_elf(node.head)
    except MalformedImage as error:
        return _failing(platform, path, f"{path}: {error.message}")
    if header.type not in EXECUTABLE_TYPES:
        return _failing(platform, path, f"{path} is an ELF file of type {header.type}: it cannot be started")
    wanted, actual, message = _describe(machine), header.describe(), ""
    if header.row is not machine:
        made_for = header.row.architecture if header.row else f"the unknown machine {header.machine}"
        message = f"{platform}: {path} is made for {made_for}, not for {machine.architecture}"
        message = f"{message} (it is {actual}; {wanted} is needed)"
    return Check(
        name="entrypoint-arch", ok=not message, expected=wanted, actual=actual, path=path, layer=node.layer,
        message=message,
    )  # fmt: skip


def _failing(platform: Platform, path: str, message: str) -> Check:
    return Check(name="entrypoint-arch", ok=False, path=path, message=f"{platform}: {message}")


def _describe(machine: Machine) -> str:
    return (
        f"ELF {machine.bits}-bit {machine.order}-endian, "
        f"machine {machine.elf_machine} ({machine.architecture})"
    )


def _names(platforms: Iterable[Platform]) -> str:
    return ", ".join(str(platform) for platform in platforms)
