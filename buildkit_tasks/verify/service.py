"""Verify an image: read its layers in the order of the source, then check one platform after the other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.scan import LayerScanCache, flatten_layers
from buildkit_tasks.oci.layers.stream import check_diff_id, check_layer_count
from buildkit_tasks.report.model import Check, PlatformVerdict, VerifyReport
from buildkit_tasks.verify.attestations import read_attestations
from buildkit_tasks.verify.host_match import baseline_for, match_hosts
from buildkit_tasks.verify.index import (
    check_config_platform,
    check_expected_platform,
    check_missing_content,
    check_missing_platform,
    check_unique_entry,
)
from buildkit_tasks.verify.progress import VerifyProgress
from buildkit_tasks.verify.rootfs import RootfsVerifier, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = ["VerifyOptions", "verify"]

_IMAGE_ERRORS = (MalformedImage, LimitExceeded)


def verify(
    source: Source,
    expected: Sequence[Platform],
    subject: str,
    options: VerifyOptions | None = None,
    progress: VerifyProgress | None = None,
) -> VerifyReport:
    """Check that an image has exactly the ``expected`` platforms, if any, and that each is what it claims.

    Every problem of the image becomes a failing check of the platform concerned: ``unknown`` if the image
    cannot be read that far, ``none`` if it has no platform. Errors of the source, such as
    :class:`RegistryError`, are raised. ``subject`` is the image's name in the report. ``progress`` is updated
    meanwhile.
    """
    progress = progress or VerifyProgress(subject=subject, activity="")
    progress.activity = f"reading the index of {subject}"
    image = Image.wrap(source)
    try:
        progress.digest = str(image.root.digest)
        verification = _Verification(image, tuple(expected), options or VerifyOptions(), progress)
    except _IMAGE_ERRORS as error:
        names, checks = [str(platform) for platform in expected] or ["unknown"], (_failed_check(error),)
        verdicts = [PlatformVerdict(platform=name, digest="", checks=checks) for name in names]
    else:
        verdicts = verification.run()
    return VerifyReport(subject=subject, digest=progress.digest, platforms=tuple(verdicts))


@dataclass(frozen=True, slots=True)
class _PlannedVerdict:
    """A platform to report: the checks that need no content, then the manifest to check as ``platform``."""

    name: str
    checks: tuple[Check, ...]
    platform: Platform | None = None
    entry: Descriptor | None = None


class _Verification:
    """The verification of one image, which scans each layer once for all platforms."""

    def __init__(
        self, image: Image, expected: tuple[Platform, ...], options: VerifyOptions, progress: VerifyProgress
    ) -> None:
        self.image = image
        self.expected = expected
        self.options = options
        self.progress = progress
        self.platform_entries = image.platform_manifests
        self.present = [platform for platform, _ in self.platform_entries]
        self.layer_scans = LayerScanCache(image)
        self.rootfs_verifier = RootfsVerifier(options)

    def run(self) -> list[PlatformVerdict]:
        """Return the expected platforms in order, then the others; with hosts, one verdict for each host."""
        progress = self.progress
        planned = list(self._plan_hosts() if self.options.hosts else self._plan_platforms())
        progress.names = tuple(plan.name for plan in planned)
        self._scan_layers(planned)
        progress.activity = "reading the attestations"
        attestations = read_attestations(self.image, () if self.options.hosts else self.image.entries)
        for plan in planned:
            progress.activity = f"checking the files of {plan.name}"
            checks, digest = list(plan.checks), ""
            if plan.entry is not None and plan.platform is not None:
                digest = str(plan.entry.digest)
                checks += self._check_platform(plan.platform, plan.entry)
                checks += attestations.checks_by_digest.get(plan.entry.digest, ())
            verdict = PlatformVerdict(platform=plan.name, digest=digest, checks=tuple(checks))
            progress.verdicts.append(verdict)
        return [*progress.verdicts, *attestations.unattached]

    def _plan_platforms(self) -> Iterator[_PlannedVerdict]:
        if not self.present and not self.expected:
            check = Check(name="present", ok=False, message="the image has no platforms")
            yield _PlannedVerdict("none", (check,))
        for target in dict.fromkeys((*self.expected, *self.present)):
            if target not in self.present:
                yield _PlannedVerdict(str(target), (check_missing_platform(target, self.present),))
            for platform, entry in self.platform_entries:
                if platform == target:
                    yield self._plan_entry(platform, entry)

    def _plan_entry(self, platform: Platform, entry: Descriptor) -> _PlannedVerdict:
        if self.image.is_missing(entry):
            check = check_missing_content(
                platform, self.progress.subject, is_requested=platform in self.expected
            )
            return _PlannedVerdict(str(platform), (check,))
        checks = (
            check_unique_entry(platform, self.platform_entries),
            check_expected_platform(platform, self.expected),
        )
        return _PlannedVerdict(str(platform), checks, platform, entry)

    def _plan_hosts(self) -> Iterator[_PlannedVerdict]:
        matches = match_hosts(self.options.hosts, self.present, self.progress.subject)
        for host, (selected, check) in matches.items():
            entry = next((entry for platform, entry in self.platform_entries if platform == selected), None)
            yield _PlannedVerdict(str(host), (check,), baseline_for(host, selected), entry)

    def _scan_layers(self, planned: Iterable[_PlannedVerdict]) -> None:
        """Scan every layer, in the order in which the source is read fastest.

        Errors are found again in the caches, by the checks of each platform.
        """
        layers: list[tuple[Descriptor, Digest, str]] = []
        for name, entry in ((plan.name, plan.entry) for plan in planned if plan.entry is not None):
            self.progress.activity = f"reading the manifest of {name}"
            with contextlib.suppress(*_IMAGE_ERRORS):
                layers += ((*pair, name) for pair in self._read_layers(entry))
        for layer, diff_id, name in sorted(layers, key=lambda row: self.image.read_order(row[0])):
            self.progress.activity = f"reading layer {layer.digest} of {name}"
            with contextlib.suppress(*_IMAGE_ERRORS):
                self.layer_scans.get(layer, diff_id.algorithm)

    def _read_layers(self, entry: Descriptor) -> list[tuple[Descriptor, Digest]]:
        """Return the layers of a manifest with their diff_ids."""
        manifest, diff_ids = self.image.manifest(entry), self.image.config(entry).diff_ids
        check_layer_count(manifest, diff_ids)
        return list(zip(manifest.layers, diff_ids, strict=True))

    def _check_platform(self, platform: Platform, entry: Descriptor) -> Iterator[Check]:
        try:
            config, layers = self.image.config(entry), self._read_layers(entry)
            if not self.options.hosts:
                yield check_config_platform(platform, entry, config)
            failures = tuple(self._check_layers(layers))
            if failures:
                yield from failures
                return
            rootfs = flatten_layers(self.image, entry, self.layer_scans)
        except _IMAGE_ERRORS as error:
            yield _failed_check(error)
            return
        message = f"{len(layers)} layers: digests, sizes and diff_ids match"
        yield Check(name="integrity", ok=True, message=message)
        try:
            yield from self.rootfs_verifier.check_platform(platform, config, rootfs)
        except _IMAGE_ERRORS as error:  # of a look-up
            yield _failed_check(error)

    def _check_layers(self, layers: Iterable[tuple[Descriptor, Digest]]) -> Iterator[Check]:
        """Yield a failing check for each broken layer."""
        for layer, diff_id in layers:
            try:
                check_diff_id(layer, self.layer_scans.get(layer, diff_id.algorithm).diff_id, diff_id)
            except _IMAGE_ERRORS as error:
                yield _failed_check(error, str(layer.digest))


def _failed_check(error: BuildkitTasksError, layer: str = "") -> Check:
    name = "limit" if isinstance(error, LimitExceeded) else "integrity"
    return Check(name=name, ok=False, layer=layer, message=error.message)
