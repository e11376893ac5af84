"""Releases that cannot lie: what is pushed is proved where it lies, by its digest, and named after that.

Put, verify, run, name. A proof that fails leaves every tag as it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.copy import push as publish
from buildkit_tasks.report.model import BuiltPlatform, PushResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.oci.model import Digest
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.options import Access
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.pipeline.runs import Runs
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.service import Watch

__all__ = [
    "Plan",
    "Release",
    "Releases",
]

_SENDABLE = ("oci-archive:", "oci:", "docker-archive:")
_FORWARD_ONLY = ("docker-daemon:", "docker-archive:")  # several streams at once would be read anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is to be named how: the tags, the exact platforms, and whether it is proved before.

    No ``expected`` platforms means those that are there.
    """

    tags: tuple[Reference, ...]
    expected: tuple[Platform, ...] = ()
    proved: bool = True

    @classmethod
    def of(cls, tags: Iterable[str], expected: tuple[Platform, ...], *, proved: bool) -> Release:
        """Read the tags. Raises :class:`UsageError` without any, and for what is none."""
        from buildkit_tasks.oci.reference import Reference

        found = tuple(dict.fromkeys(Reference.parse(tag) for tag in tags))
        if not found:
            raise UsageError("no tag says where it goes", hint="name one: -t REGISTRY/NAME:TAG")
        for tag in found:
            if tag.digest is not None:
                raise UsageError(f"{tag} is no tag", hint="write it as REGISTRY/NAME:TAG")
        return cls(tags=found, expected=expected, proved=proved)

    @property
    def place(self) -> Reference:
        """The repository where it is put and proved: that of the first tag."""
        return replace(self.tags[0], tag="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a push would do."""

    release: Release
    digest: Digest
    platforms: tuple[BuiltPlatform, ...]
    sent: str

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "ok": True,
            "dry_run": True,
            "digest": str(self.digest),
            "tags": [str(tag) for tag in self.release.tags],
            "platforms": [{"platform": each.platform, "digest": each.digest} for each in self.platforms],
        }

    def text(self) -> str:
        """The same for people, a line for each step."""
        at = f"{self.release.place.name}@{self.digest}"
        names = ", ".join(each.platform for each in self.platforms)
        proof = [f"would verify and run docker://{at} ({names})"] if self.release.proved else []
        named = [f"would name it {tag}" for tag in self.release.tags]
        return "\n".join([f"would put {self.sent} as {at}", *proof, *named])


@dataclass(frozen=True, kw_only=True)
class Releases:
    """Puts images into registries and names them there."""

    images: Images
    runs: Runs
    access: Access | None = None

    def push(self, archive: str, release: Release, watch: Watch | None = None) -> PushResult:
        """Send an image that was built before, byte for byte; prove it there; name it."""
        started = time.monotonic()
        name = self._archive(archive)
        with self.images.open(name) as source:
            jobs = 1 if name.startswith(_FORWARD_ONLY) else publish.JOBS
            root = publish.send(source, release.place, access=self.access, jobs=jobs)
            platforms = _platforms(source)
        return self.name(root.digest, platforms, release, started, watch)

    def merge(self, parts: Sequence[Reference], release: Release, watch: Watch | None = None) -> PushResult:
        """Make one index of parts that were pushed by digest; prove it; name it."""
        started = time.monotonic()
        joined = publish.merge(parts, release.place, release.expected, access=self.access)
        return self.name(joined.root.digest, _built(joined.platforms), release, started, watch)

    def name(
        self,
        digest: Digest,
        platforms: tuple[BuiltPlatform, ...],
        release: Release,
        started: float,
        watch: Watch | None = None,
    ) -> PushResult:
        """Prove what lies in the release's repository under a digest, and name it if it holds.

        ``started`` is when the work began, by the monotonic clock.
        """
        at = replace(release.place, digest=digest)
        result = PushResult(digest=str(digest), tags=(), platforms=platforms)
        if release.proved:
            result = self._prove(result, f"docker://{at}", release, watch)
        if not release.proved or result.proved:
            result = replace(result, tags=publish.name(at, release.tags, access=self.access))
        return replace(result, seconds=round(time.monotonic() - started, 3))

    def _prove(self, result: PushResult, image: str, release: Release, watch: Watch | None) -> PushResult:
        """Verify and run what lies there, fetched once for both."""
        with self.images.kept(image) as images:
            verify = images.verify(image, release.expected)
            if not verify.ok:
                return replace(result, verify=verify)
            runs = replace(self.runs, images=images)
            return replace(result, verify=verify, run=runs.emulate(image, release.expected, watch))

    def plan_push(self, archive: str, release: Release) -> Plan:
        """What :meth:`push` would do; only the archive is read."""
        from buildkit_tasks.oci.copy.graph import everything

        with self.images.open(self._archive(archive)) as source:
            blobs, *documents = everything(source)
            sent = f"{len(blobs)} blobs ({sum(blob.size for blob in blobs)} bytes) and "
            sent += f"{sum(map(len, documents))} manifests"
            return Plan(release=release, digest=source.root().digest, platforms=_platforms(source), sent=sent)

    def plan_merge(self, parts: Sequence[Reference], release: Release) -> Plan:
        """What :meth:`merge` would do; the parts' manifests are read where they lie."""
        joined = publish.join(parts, release.expected, access=self.access)
        sent = f"an index of {len(parts)} parts"
        return Plan(release=release, digest=joined.root.digest, platforms=_built(joined.platforms), sent=sent)

    def _archive(self, archive: str) -> str:
        """The image named, or what was built last here where that can be sent as it is."""
        if archive:
            return archive
        last = self.images.last
        if not last.startswith(_SENDABLE):
            raise UsageError(
                f"what was built last here is {last}, no archive", hint="inv push-multiarch ARCHIVE -t REF"
            )
        return last


def _platforms(source: Any) -> tuple[BuiltPlatform, ...]:
    from buildkit_tasks.oci.image import platform_manifests

    return _built((platform, entry.digest) for platform, entry in platform_manifests(source))


def _built(platforms: Iterable[tuple[Platform, Digest]]) -> tuple[BuiltPlatform, ...]:
    return tuple(BuiltPlatform(platform=str(platform), digest=str(digest)) for platform, digest in platforms)
