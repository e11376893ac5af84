"""Push or merge an image by digest, verify and run it in the registry, and only then move its tags.

If a check or a run fails, no tag moves.
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

    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.model import Digest
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.options import RegistryOptions
    from buildkit_tasks.pipeline.images import ImageResolver
    from buildkit_tasks.pipeline.runs import ImageRunner
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.service import RunObserver

__all__ = ["ReleasePlan", "ReleaseService", "ReleaseSpec"]

_SEQUENTIAL_PREFIXES = ("docker-daemon:", "docker-archive:")  # a second stream would be read from the start


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSpec:
    """The tags of a release, the exact platforms it must have, and whether it is verified first.

    Empty ``expected_platforms`` means the platforms that the image has.
    """

    tags: tuple[Reference, ...]
    expected_platforms: tuple[Platform, ...] = ()
    verify_first: bool = True

    @classmethod
    def from_tags(
        cls, tags: Iterable[str], expected_platforms: tuple[Platform, ...], *, verify_first: bool
    ) -> ReleaseSpec:
        """Parse the tags. Raises :class:`UsageError` if there is none or one is not valid."""
        from buildkit_tasks.oci.reference import Reference

        references = tuple(dict.fromkeys(Reference.parse(tag) for tag in tags))
        if not references:
            raise UsageError("a push needs a tag", hint="-t REGISTRY/NAME:TAG")
        for reference in references:
            if reference.digest is not None:
                raise UsageError(
                    f"{reference} is not a valid tag: it has a digest", hint="write it as REGISTRY/NAME:TAG"
                )
        return cls(tags=references, expected_platforms=expected_platforms, verify_first=verify_first)

    @property
    def repository(self) -> Reference:
        """Return the repository where the image is pushed and verified: that of the first tag."""
        return replace(self.tags[0], tag="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePlan:
    """What a push or a merge would do (``--dry-run``)."""

    spec: ReleaseSpec
    digest: Digest
    platforms: tuple[BuiltPlatform, ...]
    upload_summary: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {
            "ok": True,
            "dry_run": True,
            "digest": str(self.digest),
            "tags": [str(tag) for tag in self.spec.tags],
            "platforms": [{"platform": each.platform, "digest": each.digest} for each in self.platforms],
        }

    def to_text(self) -> str:
        """Return one line for each step."""
        target = f"{self.spec.repository.name}@{self.digest}"
        platforms = ", ".join(each.platform for each in self.platforms)
        verify_lines = (
            [f"would verify and run docker://{target} ({platforms})"] if self.spec.verify_first else []
        )
        tag_lines = [f"would tag it {tag}" for tag in self.spec.tags]
        return "\n".join([f"would push {self.upload_summary} as {target}", *verify_lines, *tag_lines])


@dataclass(frozen=True, kw_only=True)
class ReleaseService:
    """Pushes images to registries and moves their tags.

    ======= ==================================== ===================================================
    step    where                                if it fails
    ======= ==================================== ===================================================
    upload  repository of the first tag          raises; no tag has moved
    verify  there, by digest                     the result has ``verify``; nothing runs or is tagged
    run     there, by digest                     the result has ``verify`` and ``run``; nothing is tagged
    tag     each tag in its own repository       raises; the error names the tags that have moved
    ======= ==================================== ===================================================

    ``image_runner`` also opens the images. ``registry_options`` are time-outs and the like.
    """

    image_runner: ImageRunner
    registry_options: RegistryOptions | None = None

    @property
    def _resolver(self) -> ImageResolver:
        return self.image_runner.resolver

    def check_access(self, names: Iterable[str]) -> None:
        """Raise :class:`RegistryError` if a repository of these references cannot be pushed to.

        A registry that cannot be reached, or that denies access, is found before a build, not after it.
        """
        from buildkit_tasks.oci.reference import Reference
        from buildkit_tasks.oci.registry.push import open_uploader

        repositories = {Reference.parse(name).name: Reference.parse(name) for name in names}
        for repository in repositories.values():
            with open_uploader(repository, options=self.registry_options):
                pass

    def _check_other_repositories(self, spec: ReleaseSpec) -> None:
        """Check the repositories that are only tagged, after the image was pushed, verified and run."""
        self.check_access(tag.name for tag in spec.tags if tag.name != spec.repository.name)

    def push(self, archive: str, spec: ReleaseSpec, observer: RunObserver | None = None) -> PushResult:
        """Push an image that was built before, byte for byte; verify and run it there; tag it.

        An empty ``archive`` is the last one built here. ``observer`` is called with each run as it ends.
        The result tells whether verification and runs succeeded. Raises :class:`UsageError` if the last
        build is a local output, :class:`RegistryError`, and :class:`MalformedImage`.
        """
        started = time.monotonic()
        name = self._resolve_archive(archive)
        self._check_other_repositories(spec)
        with self._resolver.open(name) as image:
            platforms = _list_platforms(image)
            if spec.verify_first:
                self.image_runner.check_cpu(platform for platform, _ in image.platform_manifests)
            jobs = 1 if name.startswith(_SEQUENTIAL_PREFIXES) else publish.DEFAULT_JOBS
            publish.copy_image(image, spec.repository, registry_options=self.registry_options, jobs=jobs)
        return self.verify_and_tag(image.root.digest, platforms, spec, started, observer)

    def merge(
        self, parts: Sequence[Reference], spec: ReleaseSpec, observer: RunObserver | None = None
    ) -> PushResult:
        """Push one index of parts that were pushed by digest; verify and run it; tag it. See :meth:`push`."""
        started = time.monotonic()
        self._check_other_repositories(spec)
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
        """Verify and run an image by its digest in the release's repository; tag it if that succeeds.

        ``started`` is the time of the monotonic clock at which the release began, in seconds.
        """
        target = replace(spec.repository, digest=digest)
        result = PushResult(digest=str(digest), tags=(), platforms=platforms)
        if spec.verify_first:
            result = self._verify_and_run(result, f"docker://{target}", spec, observer)
        if not spec.verify_first or result.is_verified:
            tags = publish.tag_image(target, spec.tags, registry_options=self.registry_options)
            result = replace(result, tags=tags)
        return replace(result, seconds=round(time.monotonic() - started, 3))

    def _verify_and_run(
        self, result: PushResult, image: str, spec: ReleaseSpec, observer: RunObserver | None
    ) -> PushResult:
        """Return the result with the verification and, if that succeeded, the runs of the image."""
        with self._resolver.cached(image) as resolver:
            result = replace(result, verify=resolver.verify(image, spec.expected_platforms))
            if result.verify is None or not result.verify.ok:
                return result
            image_runner = replace(self.image_runner, resolver=resolver)
            return replace(result, run=image_runner.run_image(image, spec.expected_platforms, observer))

    def plan_push(self, archive: str, spec: ReleaseSpec) -> ReleasePlan:
        """Return what :meth:`push` would do. Reads only the archive."""
        from buildkit_tasks.oci.copy.graph import push_order

        with self._resolver.open(self._resolve_archive(archive)) as image:
            blobs, *manifest_levels = push_order(image)
            size, manifests = sum(blob.size for blob in blobs), sum(map(len, manifest_levels))
            return ReleasePlan(
                spec=spec,
                digest=image.root.digest,
                platforms=_list_platforms(image),
                upload_summary=f"{len(blobs)} blobs ({size} bytes) and {manifests} manifests",
            )

    def plan_merge(self, parts: Sequence[Reference], spec: ReleaseSpec) -> ReleasePlan:
        """Return what :meth:`merge` would do. Reads only the manifests of the parts."""
        index = publish.assemble_index(parts, spec.expected_platforms, registry_options=self.registry_options)
        return ReleasePlan(
            spec=spec,
            digest=index.root.digest,
            platforms=_to_built_platforms(index.platforms),
            upload_summary=f"an index of {len(parts)} parts",
        )

    def _resolve_archive(self, archive: str) -> str:
        """Return the image that is named, or the last one built here."""
        return archive or self._resolver.last_image.require_manifests()


def _list_platforms(image: Image) -> tuple[BuiltPlatform, ...]:
    return _to_built_platforms((platform, entry.digest) for platform, entry in image.platform_manifests)


def _to_built_platforms(platforms: Iterable[tuple[Platform, Digest]]) -> tuple[BuiltPlatform, ...]:
    return tuple(BuiltPlatform(platform=str(platform), digest=str(digest)) for platform, digest in platforms)
