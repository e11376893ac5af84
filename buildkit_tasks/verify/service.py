"""Verify an image: read it once, then judge each of its platforms."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import (
    IndexEntry,
    Kind,
    Source,
    config_of,
    index_entries,
    lacks,
    manifest_of,
    position,
)
from buildkit_tasks.oci.layers.rootfs import RootFs
from buildkit_tasks.oci.layers.scan import LayerScans, flatten
from buildkit_tasks.oci.layers.stream import check_diff_id, check_layer_count
from buildkit_tasks.report.model import Check, PlatformVerdict, VerifyReport
from buildkit_tasks.verify.attestations import read_attestations
from buildkit_tasks.verify.host_match import fit_check, promised_to
from buildkit_tasks.verify.index import (
    absent_check,
    expected_check,
    missing_check,
    present_check,
    stated_check,
)
from buildkit_tasks.verify.rootfs import Contents, Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest, ImageConfig, Manifest
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.verify.index import Found

__all__ = ["Rules", "verify"]

_PROBLEMS = (MalformedImage, LimitExceeded)


def verify(
    source: Source, expected: Sequence[Platform], subject: str, rules: Rules | None = None
) -> VerifyReport:
    """Check the image against the exact platforms ``expected``; if empty, against what it names.

    Whatever is wrong with the image is a failing check in the report, under the platform that it
    is about (``unknown`` when the image cannot be read that far, ``none`` when it has none).
    Errors of reaching the image, such as a registry's, are raised.
    """
    digest = ""
    try:
        digest = str(source.root().digest)
        entries = index_entries(source)
    except _PROBLEMS as error:
        names = [str(platform) for platform in expected] or ["unknown"]
        verdicts = [PlatformVerdict(platform=name, digest="", checks=(_broken(error),)) for name in names]
        return VerifyReport(subject=subject, digest=digest, platforms=tuple(verdicts))
    run = _Run(source, tuple(expected), entries, subject, rules or Rules())
    return VerifyReport(subject=subject, digest=digest, platforms=tuple(run.verdicts()))


@dataclass(frozen=True, slots=True)
class _Documents:
    """The manifest and the configuration of one platform."""

    manifest: Manifest
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class _Row:
    """A verdict to be: its name, what is known before reading, and the manifest to judge as a platform's."""

    name: str
    checks: tuple[Check, ...]
    platform: Platform | None = None
    entry: Descriptor | None = None


class _Run:
    """One verification: what platforms share is read once in it."""

    def __init__(
        self,
        source: Source,
        expected: tuple[Platform, ...],
        entries: Sequence[IndexEntry],
        subject: str,
        rules: Rules,
    ) -> None:
        self.source = source
        self.expected = expected
        self.entries = entries
        self.found: list[Found] = [
            (entry.platform, entry.descriptor)
            for entry in entries
            if entry.kind is Kind.IMAGE and entry.platform is not None
        ]
        self.subject = subject
        self.rules = rules
        self.scans = LayerScans(source)
        self.documents: dict[Descriptor, _Documents | Check] = {}
        self.contents = Contents(rules)

    def verdicts(self) -> Iterator[PlatformVerdict]:
        """Expected platforms in their order, then the ones that nobody expected; or one for each host."""
        rows = list(self._fits() if self.rules.hosts else self._wanted())
        self._read(row.entry for row in rows if row.entry is not None)
        attestations = read_attestations(self.source, () if self.rules.hosts else self.entries)
        for row in rows:
            checks, digest = list(row.checks), ""
            if row.entry is not None and row.platform is not None:
                digest = str(row.entry.digest)
                checks += self._checks(row.platform, row.entry)
                checks += attestations.of.get(row.entry.digest, ())
            yield PlatformVerdict(platform=row.name, digest=digest, checks=tuple(checks))
        yield from attestations.homeless

    def _wanted(self) -> Iterator[_Row]:
        present = [platform for platform, _ in self.found]
        if not present and not self.expected:
            check = Check(name="present", ok=False, message="the image holds no platform at all")
            yield _Row("none", (check,))
        for wanted in dict.fromkeys((*self.expected, *present)):
            entries = [entry for platform, entry in self.found if platform == wanted]
            if not entries:
                yield _Row(str(wanted), (missing_check(wanted, present),))
            for entry in entries:
                if lacks(self.source, entry):
                    check = absent_check(wanted, self.subject, asked=wanted in self.expected)
                    yield _Row(str(wanted), (check,))
                    continue
                checks = (present_check(wanted, self.found), expected_check(wanted, self.expected))
                yield _Row(str(wanted), checks, wanted, entry)

    def _fits(self) -> Iterator[_Row]:
        held = [platform for platform, _ in self.found]
        for host, nodes in self.rules.hosts.items():
            chosen, check = fit_check(host, held, self.subject, nodes)
            entry = next((entry for platform, entry in self.found if platform == chosen), None)
            yield _Row(str(host), (check,), promised_to(host, chosen), entry)

    def _read(self, entries: Iterable[Descriptor]) -> None:
        """Read every document, then every layer once, in the order in which the source has them."""
        for entry in entries:
            self.documents[entry] = self._documents(entry)
        sound = [each for each in self.documents.values() if isinstance(each, _Documents)]
        pairs = [pair for each in sound for pair in _layers(each)]
        for layer, diff_id in sorted(pairs, key=lambda pair: position(self.source, pair[0])):
            with contextlib.suppress(*_PROBLEMS):  # asked for again, and told, for each platform
                self.scans.get(layer, diff_id.algorithm)

    def _documents(self, entry: Descriptor) -> _Documents | Check:
        try:
            manifest = manifest_of(self.source, entry)
            config = config_of(self.source, manifest)
            check_layer_count(manifest, config.diff_ids)
        except _PROBLEMS as error:
            return _broken(error)
        return _Documents(manifest, config)

    def _checks(self, platform: Platform, entry: Descriptor) -> Iterator[Check]:
        documents = self.documents[entry]
        if isinstance(documents, Check):
            yield documents
            return
        if not self.rules.hosts:
            yield stated_check(platform, entry, documents.config)
        rootfs = self._rootfs(documents)
        if not isinstance(rootfs, RootFs):
            yield from rootfs
            return
        count = len(documents.manifest.layers)
        yield Check(name="integrity", ok=True, message=f"{count} layers: digests, sizes and diff_ids hold")
        yield from self.contents.checks(platform, documents.config, rootfs)

    def _rootfs(self, documents: _Documents) -> RootFs | list[Check]:
        """The flattened file system, or a failing check for each layer that is broken."""
        broken = []
        for layer, diff_id in _layers(documents):
            try:
                check_diff_id(layer, self.scans.get(layer, diff_id.algorithm).diff_id, diff_id)
            except _PROBLEMS as error:
                broken.append(_broken(error, str(layer.digest)))
        if broken:
            return broken
        try:
            return flatten(self.source, documents.manifest, self.scans)
        except _PROBLEMS as error:
            return [_broken(error)]


def _broken(error: BuildkitTasksError, layer: str = "") -> Check:
    name = "limit" if isinstance(error, LimitExceeded) else "integrity"
    return Check(name=name, ok=False, layer=layer, message=error.message)


def _layers(documents: _Documents) -> list[tuple[Descriptor, Digest]]:
    return list(zip(documents.manifest.layers, documents.config.diff_ids, strict=True))
