"""Releases: an image's bytes put into a registry, and names for what is there.

Nothing is named before everything that it reaches is stored: blobs first, then manifests by digest,
then the index by digest, and only then the tags, by whoever has proved that digest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, Interrupted, RegistryError, UsageError
from buildkit_tasks.report.model import NamedTag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.options import RegistryOptions
    from buildkit_tasks.oci.registry.push import Uploader
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = [
    "DEFAULT_JOBS",
    "AssembledIndex",
    "NamedTag",
    "assemble_index",
    "copy_image",
    "push_index",
    "tag_image",
]

DEFAULT_JOBS = 4  # uploads at once: as many as a registry gladly takes from one


def copy_image(
    source: Source,
    destination: Reference,
    *,
    mount_from: Reference | None = None,
    registry_options: RegistryOptions | None = None,
    jobs: int = DEFAULT_JOBS,
) -> Descriptor:
    """Put everything that the source's root reaches into the destination's repository; gives the root.

    The very bytes, attestations included; of foreign layers the descriptors alone. What is there is
    not sent again, nor what the registry has in the repository of ``origin``. The root goes last, by
    its digest: no tag is touched, and ``destination``'s own is not looked at. At most ``jobs`` blobs
    are sent at once. Raises :class:`RegistryError` for a registry that cannot be reached or refuses,
    :class:`MalformedImage` for a source that is not sound.
    """
    from buildkit_tasks.oci.copy.graph import push_order
    from buildkit_tasks.oci.registry.push import open_uploader

    root = source.root_descriptor()
    blobs, *documents = push_order(source)
    with open_uploader(destination, options=registry_options, mount_from=mount_from) as uploader:
        # A registry takes a document after what it lists, and keeps that as long (its collector too).
        if uploader.get_digest(str(root.digest)) == root.digest:
            return root
        run_parallel(jobs, uploader, [partial(uploader.push_blob, source, blob) for blob in blobs])
        for level in documents:  # an index after what it lists
            run_parallel(jobs, uploader, [partial(uploader.push_manifest, source, each) for each in level])
    return root


def tag_image(
    image: Reference,
    tags: Sequence[Reference],
    *,
    registry_options: RegistryOptions | None = None,
    jobs: int = DEFAULT_JOBS,
) -> tuple[NamedTag, ...]:
    """Let tags name what the registry has under the digest of ``at``, in their order.

    A tag of another repository gets the whole image first, before any tag is moved. A tag that names
    the digest already is left as it is. Each is looked at again afterwards. Raises
    :class:`RegistryError` that says which tags moved and which did not.
    """
    from buildkit_tasks.oci.limits import LIMITS
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.source import read_blob

    _check_tags(image, tags)
    untagged = replace(image, tag="")
    update = _TagUpdate(registry_options=registry_options, tags=tuple(tags))
    try:
        with open_registry(str(untagged), options=registry_options) as source:
            update.root = source.root_descriptor()
            update.data = read_blob(source, update.root, LIMITS.document_bytes)
            for destination in {
                (tag.host, tag.repository): tag for tag in tags if tag.name != image.name
            }.values():
                copy_image(
                    source, destination, mount_from=image, registry_options=registry_options, jobs=jobs
                )
        return tuple(update.move_tag(tag) for tag in tags)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {update.describe_progress()}") from None
    except UsageError:  # nothing was asked of a registry yet
        raise
    except BuildkitTasksError as error:
        raise RegistryError(f"{error.message}; {update.describe_progress()}", hint=error.hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledIndex:
    """An index that was made of parts: its descriptor, its bytes, and whose manifests it lists."""

    root: Descriptor
    data: bytes = field(repr=False)
    platforms: tuple[tuple[Platform, Digest], ...]


def assemble_index(
    parts: Sequence[Reference],
    expected: Sequence[Platform] = (),
    *,
    registry_options: RegistryOptions | None = None,
) -> AssembledIndex:
    """Make one index of parts, each an image of one platform by its digest; nothing is put anywhere.

    A part is a manifest, or an index with the attestations of its one image. Raises
    :class:`CheckFailed` that names a platform that is there twice, is missing or is not expected.
    """
    from buildkit_tasks.oci.copy.index import merge_parts, read_part
    from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
    from buildkit_tasks.oci.registry import open_registry

    images = []
    for part in parts:
        _check_part(part)
        with open_registry(str(replace(part, tag="")), options=registry_options) as source:
            images.append(read_part(source, str(part)))
    data = merge_parts(images, expected)
    digests = {part.platform: Digest(part.image["digest"]) for part in images}
    return AssembledIndex(
        root=Descriptor(media_type=OCI_INDEX, digest=Digest.from_bytes(data), size=len(data)),
        data=data,
        platforms=tuple((platform, digests[platform]) for platform in expected or digests),
    )


def push_index(
    parts: Sequence[Reference],
    destination: Reference,
    expected: Sequence[Platform] = (),
    *,
    registry_options: RegistryOptions | None = None,
    jobs: int = DEFAULT_JOBS,
) -> AssembledIndex:
    """Put the index that :func:`join` makes of the parts into a repository, by its digest; never a tag.

    Parts of other repositories are sent there first. ``into``'s own tag is not looked at.
    """
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.registry.push import open_uploader

    index = assemble_index(parts, expected, registry_options=registry_options)
    for part in parts:
        if part.name != destination.name:
            with open_registry(str(replace(part, tag="")), options=registry_options) as source:
                copy_image(source, destination, mount_from=part, registry_options=registry_options, jobs=jobs)
    with open_uploader(destination, options=registry_options) as uploader:
        uploader.put_manifest(index.data, index.root, str(index.root.digest))
    return index


def _check_part(part: Reference) -> None:
    if part.digest is None:
        raise UsageError(
            f"the part {part} has no digest: what it names may change", hint="write it as REPO@sha256:..."
        )


def _check_tags(image: Reference, tags: Sequence[Reference]) -> None:
    if image.digest is None:
        raise UsageError(f"{image} has no digest to be named", hint="write it as REPOSITORY@sha256:...")
    for tag in tags:
        if tag.digest is not None or not tag.tag:
            raise UsageError(f"{tag} is no tag", hint="write it as REGISTRY/NAME:TAG")


@dataclass(kw_only=True)
class _TagUpdate:
    """How far the naming of several tags has come."""

    registry_options: RegistryOptions | None
    tags: tuple[Reference, ...]
    root: Descriptor | None = None
    data: bytes = field(default=b"", repr=False)
    moved: set[Reference] = field(default_factory=set)
    uncertain: set[Reference] = field(default_factory=set)

    def move_tag(self, tag: Reference) -> NamedTag:
        """Move one tag, and look whether it has stayed where it was put."""
        from buildkit_tasks.oci.registry.push import open_uploader

        root = self.root
        if root is None:
            raise RuntimeError("nothing is there to be named")
        with open_uploader(tag, options=self.registry_options) as uploader:
            before = uploader.get_digest(tag.tag)
            if before != root.digest:
                self._put_tag(uploader, tag, root)
        return NamedTag(
            ref=str(tag), digest=str(root.digest), previous=str(before or ""), moved=before != root.digest
        )

    def _put_tag(self, uploader: Uploader, tag: Reference, root: Descriptor) -> None:
        from buildkit_tasks.oci.registry.errors import RequestRejected

        self.uncertain.add(tag)  # should we not hear the end of it
        try:
            uploader.put_manifest(self.data, root, tag.tag)
        except RequestRejected:
            self.uncertain.discard(tag)
            raise
        after = uploader.get_digest(tag.tag)
        if after == root.digest:
            self.moved.add(tag)
        self.uncertain.discard(tag)
        if after != root.digest:
            new_target = f"to {after}" if after else "away"
            raise RegistryError(
                f"a rival push moved {tag} {new_target}, after it was put at {root.digest}",
                hint="find out who else pushes that tag, then push again",
            )

    def describe_progress(self) -> str:
        """Which tags moved, and which did not."""
        unmoved = [tag for tag in self.tags if tag not in self.moved | self.uncertain]
        groups = {
            "moved": [tag for tag in self.tags if tag in self.moved],
            "not known whether moved": [tag for tag in self.tags if tag in self.uncertain],
            "not moved": unmoved,
        }
        phrases = [f"{label}: {', '.join(map(str, tags))}" for label, tags in groups.items() if tags]
        return "; ".join(phrases)


def run_parallel(jobs: int, uploader: Uploader, tasks: Sequence[Callable[[], object]]) -> None:
    """Do them all, several at a time; the first failure, or Ctrl-C, ends the others at once."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures: list[Future[object]] = []
        try:
            futures.extend(pool.submit(task) for task in tasks)
            for future in as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            uploader.abort()
            raise
