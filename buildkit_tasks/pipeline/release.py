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
    from buildkit_tasks.oci.registry.options import RegistryOptions
    from buildkit_tasks.pipeline.images import ImageResolver
    from buildkit_tasks.pipeline.runs import ImageRunner
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.service import RunObserver

__all__ = [
    "ReleasePlan",
    "ReleaseService",
    "ReleaseSpec",
]

_ARCHIVE_PREFIXES = ("oci-archive:", "oci:", "docker-archive:")
_SEQUENTIAL_PREFIXES = ("docker-daemon:", "docker-archive:")  # several streams at once would be read anew


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSpec:
    """What is to be named how: the tags, the exact platforms, and whether it is proved before.

    No ``expected`` platforms means those that are there.
    """

    tags: tuple[Reference, ...]
    expected_platforms: tuple[Platform, ...] = ()
    verify_first: bool = True

    @classmethod
    def from_tags(
        cls, tags: Iterable[str], expected_platforms: tuple[Platform, ...], *, verify_first: bool
    ) -> ReleaseSpec:
        """Read the tags. Raises :class:`UsageError` without any, and for what is none."""
        from buildkit_tasks.oci.reference import Reference

        references = tuple(dict.fromkeys(Reference.parse(reference) for reference in tags))
        if not references:
            raise UsageError("no tag says where it goes", hint="name one: -t REGISTRY/NAME:TAG")
        for reference in references:
            if reference.digest is not None:
                raise UsageError(f"{reference} is no tag", hint="write it as REGISTRY/NAME:TAG")
        return cls(tags=references, expected_platforms=expected_platforms, verify_first=verify_first)

    @property
    def repository(self) -> Reference:
        """The repository where it is put and proved: that of the first tag."""
        return replace(self.tags[0], tag="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePlan:
    """What a push would do."""

    spec: ReleaseSpec
    digest: Digest
    platforms: tuple[BuiltPlatform, ...]
    upload_summary: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "ok": True,
            "dry_run": True,
            "digest": str(self.digest),
            "tags": [str(tag) for tag in self.spec.tags],
            "platforms": [{"platform": each.platform, "digest": each.digest} for each in self.platforms],
        }

    def to_text(self) -> str:
        """The same for people, a line for each step."""
        target = f"{self.spec.repository.name}@{self.digest}"
        platforms = ", ".join(each.platform for each in self.platforms)
        verify_lines = (
            [f"would verify and run docker://{target} ({platforms})"] if self.spec.verify_first else []
        )
        tag_lines = [f"would name it {tag}" for tag in self.spec.tags]
        return "\n".join([f"would put {self.upload_summary} as {target}", *verify_lines, *tag_lines])


@dataclass(frozen=True, kw_only=True)
class ReleaseService:
    """Puts images into registries and names them there."""

    resolver: ImageResolver
    image_runner: ImageRunner
    registry_options: RegistryOptions | None = None

    def push(self, archive: str, spec: ReleaseSpec, observer: RunObserver | None = None) -> PushResult:
        """Send an image that was built before, byte for byte; prove it there; name it."""
        started = time.monotonic()
        image = self._resolve_archive(archive)
        with self.resolver.open(image) as source:
            jobs = 1 if image.startswith(_SEQUENTIAL_PREFIXES) else publish.DEFAULT_JOBS
            root = publish.copy_image(
                source, spec.repository, registry_options=self.registry_options, jobs=jobs
            )
            platforms = _read_source_platforms(source)
        return self.verify_and_tag(root.digest, platforms, spec, started, observer)

    def merge(
        self, parts: Sequence[Reference], spec: ReleaseSpec, observer: RunObserver | None = None
    ) -> PushResult:
        """Make one index of parts that were pushed by digest; prove it; name it."""
        started = time.monotonic()
        index = publish.push_index(
            parts, spec.repository, spec.expected_platforms, registry_options=self.registry_options
        )
        return self.verify_and_tag(
            index.root.digest, _to_built_platforms(index.platforms), spec, started, observer
        )

    def verify_and_tag(
        self,
        digest: Digest,
        platforms: tuple[BuiltPlatform, ...],
        spec: ReleaseSpec,
        started: float,
        observer: RunObserver | None = None,
    ) -> PushResult:
        """Prove what lies in the release's repository under a digest, and name it if it holds.

        ``started`` is when the work began, by the monotonic clock.
        """
        target = replace(spec.repository, digest=digest)
        result = PushResult(digest=str(digest), tags=(), platforms=platforms)
        if spec.verify_first:
            result = self._verify_and_run(result, f"docker://{target}", spec, observer)
        if not spec.verify_first or result.is_verified:
            result = replace(
                result, tags=publish.tag_image(target, spec.tags, registry_options=self.registry_options)
            )
        return replace(result, seconds=round(time.monotonic() - started, 3))

    def _verify_and_run(
        self, result: PushResult, image: str, spec: ReleaseSpec, observer: RunObserver | None
    ) -> PushResult:
        """Verify and run what lies there, fetched once for both."""
        with self.resolver.cached(image) as resolver:
            verify_report = resolver.verify(image, spec.expected_platforms)
            if not verify_report.ok:
                return replace(result, verify=verify_report)
            image_runner = replace(self.image_runner, resolver=resolver)
            return replace(
                result,
                verify=verify_report,
                run=image_runner.run_image(image, spec.expected_platforms, observer),
            )

    def plan_push(self, archive: str, spec: ReleaseSpec) -> ReleasePlan:
        """What :meth:`push` would do; only the archive is read."""
        from buildkit_tasks.oci.copy.graph import push_order

        with self.resolver.open(self._resolve_archive(archive)) as source:
            blobs, *manifest_levels = push_order(source)
            upload_summary = f"{len(blobs)} blobs ({sum(blob.size for blob in blobs)} bytes) and "
            upload_summary += f"{sum(map(len, manifest_levels))} manifests"
            return ReleasePlan(
                spec=spec,
                digest=source.root_descriptor().digest,
                platforms=_read_source_platforms(source),
                upload_summary=upload_summary,
            )

    def plan_merge(self, parts: Sequence[Reference], spec: ReleaseSpec) -> ReleasePlan:
        """What :meth:`merge` would do; the parts' manifests are read where they lie."""
        index = publish.assemble_index(parts, spec.expected_platforms, registry_options=self.registry_options)
        upload_summary = f"an index of {len(parts)} parts"
        return ReleasePlan(
            spec=spec,
            digest=index.root.digest,
            platforms=_to_built_platforms(index.platforms),
            upload_summary=upload_summary,
        )

    def _resolve_archive(self, archive: str) -> str:
        """The image named, or what was built last here where that can be sent as it is."""
        if archive:
            return archive
        last = self.resolver.last_built
        if not last.startswith(_ARCHIVE_PREFIXES):
            raise UsageError(
                f"what was built last here is {last}, no archive", hint="inv push-multiarch ARCHIVE -t REF"
            )
        return last


def _read_source_platforms(source: Any) -> tuple[BuiltPlatform, ...]:
    from buildkit_tasks.oci.image import platform_manifests

    return _to_built_platforms((platform, entry.digest) for platform, entry in platform_manifests(source))


def _to_built_platforms(platforms: Iterable[tuple[Platform, Digest]]) -> tuple[BuiltPlatform, ...]:
    return tuple(BuiltPlatform(platform=str(platform), digest=str(digest)) for platform, digest in platforms)
