"""Verify an image: read it once, then judge each of its platforms."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import (
    IndexEntry,
    IndexEntryKind,
    Source,
    index_entries,
    is_missing,
    read_config,
    read_manifest,
    read_order,
)
from buildkit_tasks.oci.layers.rootfs import RootFs
from buildkit_tasks.oci.layers.scan import LayerScanCache, flatten_layers
from buildkit_tasks.oci.layers.stream import check_diff_id, check_layer_count
from buildkit_tasks.report.model import Check, PlatformVerdict, VerifyReport
from buildkit_tasks.verify.attestations import read_attestations
from buildkit_tasks.verify.host_match import baseline_for, match_host
from buildkit_tasks.verify.index import (
    check_config_platform,
    check_expected_platform,
    check_missing_content,
    check_missing_platform,
    check_unique_entry,
)
from buildkit_tasks.verify.rootfs import RootfsVerifier, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest, ImageConfig, Manifest
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.verify.index import PlatformEntry

__all__ = ["VerifyOptions", "verify"]

_IMAGE_ERRORS = (MalformedImage, LimitExceeded)


def verify(
    source: Source, expected: Sequence[Platform], subject: str, options: VerifyOptions | None = None
) -> VerifyReport:
    """Check the image against the exact platforms ``expected``; if empty, against what it names.

    Whatever is wrong with the image is a failing check in the report, under the platform that it
    is about (``unknown`` when the image cannot be read that far, ``none`` when it has none).
    Errors of reaching the image, such as a registry's, are raised.
    """
    digest = ""
    try:
        digest = str(source.root_descriptor().digest)
        entries = index_entries(source)
    except _IMAGE_ERRORS as error:
        platform_names = [str(platform) for platform in expected] or ["unknown"]
        verdicts = [
            PlatformVerdict(platform=name, digest="", checks=(_failed_check(error),))
            for name in platform_names
        ]
        return VerifyReport(subject=subject, digest=digest, platforms=tuple(verdicts))
    verification = _Verification(source, tuple(expected), entries, subject, options or VerifyOptions())
    return VerifyReport(subject=subject, digest=digest, platforms=tuple(verification.iter_verdicts()))


@dataclass(frozen=True, slots=True)
class _PlatformDocuments:
    """The manifest and the configuration of one platform."""

    manifest: Manifest
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class _PlannedVerdict:
    """A verdict to be: its name, what is known before reading, and the manifest to judge as a platform's."""

    name: str
    checks: tuple[Check, ...]
    platform: Platform | None = None
    entry: Descriptor | None = None


class _Verification:
    """One verification: what platforms share is read once in it."""

    def __init__(
        self,
        source: Source,
        expected: tuple[Platform, ...],
        entries: Sequence[IndexEntry],
        subject: str,
        options: VerifyOptions,
    ) -> None:
        self.source = source
        self.expected = expected
        self.entries = entries
        self.platform_entries: list[PlatformEntry] = [
            (entry.platform, entry.descriptor)
            for entry in entries
            if entry.kind is IndexEntryKind.IMAGE and entry.platform is not None
        ]
        self.subject = subject
        self.options = options
        self.layer_scans = LayerScanCache(source)
        self.documents: dict[Descriptor, _PlatformDocuments | Check] = {}
        self.rootfs_verifier = RootfsVerifier(options)

    def iter_verdicts(self) -> Iterator[PlatformVerdict]:
        """Expected platforms in their order, then the ones that nobody expected; or one for each host."""
        planned = list(self._plan_hosts() if self.options.hosts else self._plan_platforms())
        self._read_contents(row.entry for row in planned if row.entry is not None)
        attestations = read_attestations(self.source, () if self.options.hosts else self.entries)
        for plan in planned:
            checks, digest = list(plan.checks), ""
            if plan.entry is not None and plan.platform is not None:
                digest = str(plan.entry.digest)
                checks += self._check_platform(plan.platform, plan.entry)
                checks += attestations.checks_by_digest.get(plan.entry.digest, ())
            yield PlatformVerdict(platform=plan.name, digest=digest, checks=tuple(checks))
        yield from attestations.unattached

    def _plan_platforms(self) -> Iterator[_PlannedVerdict]:
        present = [platform for platform, _ in self.platform_entries]
        if not present and not self.expected:
            check = Check(name="present", ok=False, message="the image holds no platform at all")
            yield _PlannedVerdict("none", (check,))
        for target in dict.fromkeys((*self.expected, *present)):
            entries = [entry for platform, entry in self.platform_entries if platform == target]
            if not entries:
                yield _PlannedVerdict(str(target), (check_missing_platform(target, present),))
            for entry in entries:
                if is_missing(self.source, entry):
                    check = check_missing_content(target, self.subject, is_requested=target in self.expected)
                    yield _PlannedVerdict(str(target), (check,))
                    continue
                checks = (
                    check_unique_entry(target, self.platform_entries),
                    check_expected_platform(target, self.expected),
                )
                yield _PlannedVerdict(str(target), checks, target, entry)

    def _plan_hosts(self) -> Iterator[_PlannedVerdict]:
        present = [platform for platform, _ in self.platform_entries]
        for host, node_count in self.options.hosts.items():
            selected, check = match_host(host, present, self.subject, node_count)
            entry = next((entry for platform, entry in self.platform_entries if platform == selected), None)
            yield _PlannedVerdict(str(host), (check,), baseline_for(host, selected), entry)

    def _read_contents(self, entries: Iterable[Descriptor]) -> None:
        """Read every document, then every layer once, in the order in which the source has them."""
        for entry in entries:
            self.documents[entry] = self._read_documents(entry)
        readable = [each for each in self.documents.values() if isinstance(each, _PlatformDocuments)]
        layer_pairs = [pair for each in readable for pair in _pair_layers(each)]
        for layer, diff_id in sorted(layer_pairs, key=lambda pair: read_order(self.source, pair[0])):
            with contextlib.suppress(*_IMAGE_ERRORS):  # asked for again, and told, for each platform
                self.layer_scans.get(layer, diff_id.algorithm)

    def _read_documents(self, entry: Descriptor) -> _PlatformDocuments | Check:
        try:
            manifest = read_manifest(self.source, entry)
            config = read_config(self.source, manifest)
            check_layer_count(manifest, config.diff_ids)
        except _IMAGE_ERRORS as error:
            return _failed_check(error)
        return _PlatformDocuments(manifest, config)

    def _check_platform(self, platform: Platform, entry: Descriptor) -> Iterator[Check]:
        documents = self.documents[entry]
        if isinstance(documents, Check):
            yield documents
            return
        if not self.options.hosts:
            yield check_config_platform(platform, entry, documents.config)
        rootfs = self._flatten_layers(documents)
        if not isinstance(rootfs, RootFs):
            yield from rootfs
            return
        count = len(documents.manifest.layers)
        yield Check(name="integrity", ok=True, message=f"{count} layers: digests, sizes and diff_ids hold")
        yield from self.rootfs_verifier.check_platform(platform, documents.config, rootfs)

    def _flatten_layers(self, documents: _PlatformDocuments) -> RootFs | list[Check]:
        """The flattened file system, or a failing check for each layer that is broken."""
        failures = []
        for layer, diff_id in _pair_layers(documents):
            try:
                check_diff_id(layer, self.layer_scans.get(layer, diff_id.algorithm).diff_id, diff_id)
            except _IMAGE_ERRORS as error:
                failures.append(_failed_check(error, str(layer.digest)))
        if failures:
            return failures
        try:
            return flatten_layers(self.source, documents.manifest, self.layer_scans)
        except _IMAGE_ERRORS as error:
            return [_failed_check(error)]


def _failed_check(error: BuildkitTasksError, layer: str = "") -> Check:
    name = "limit" if isinstance(error, LimitExceeded) else "integrity"
    return Check(name=name, ok=False, layer=layer, message=error.message)


def _pair_layers(documents: _PlatformDocuments) -> list[tuple[Descriptor, Digest]]:
    return list(zip(documents.manifest.layers, documents.config.diff_ids, strict=True))
