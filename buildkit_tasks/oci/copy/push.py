"""Copy images to registries and move tags.

A tag moves only after everything it reaches is stored. :func:`copy_image` pushes blobs, then manifests,
then indexes, all by digest; :func:`tag_image` moves the tags, when the caller has verified the digest.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, Interrupted, RegistryError, UsageError
from buildkit_tasks.report.model import NamedTag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit_tasks.oci.image import Image
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

DEFAULT_JOBS = 4  # parallel uploads; more from one client are often throttled by registries


def copy_image(
    source: Source,
    destination: Reference,
    *,
    mount_from: Reference | None = None,
    registry_options: RegistryOptions | None = None,
    jobs: int = DEFAULT_JOBS,
) -> Descriptor:
    """Copy an image, attestations included, byte for byte into a repository; return its root.

    The destination's tag is ignored: manifests are pushed by digest, the root last. Of foreign layers only
    the descriptors are copied. Blobs that the repository has, or that the registry can mount from
    ``mount_from``, are not sent. At most ``jobs`` blobs are sent in parallel. Raise :class:`RegistryError`
    if the registry cannot be reached or rejects a request, :class:`MalformedImage` for a broken source.
    """
    from buildkit_tasks.oci.copy.graph import push_order
    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.registry.push import open_uploader

    image = Image.wrap(source)
    blobs, *document_levels = push_order(image)
    with open_uploader(destination, options=registry_options, mount_from=mount_from) as uploader:
        # A registry stores a document only after what it lists, and its garbage collector keeps both.
        if uploader.get_digest(str(image.root.digest)) != image.root.digest:
            run_parallel(jobs, uploader, [partial(uploader.push_blob, image, blob) for blob in blobs])
            for level in document_levels:
                run_parallel(jobs, uploader, [partial(uploader.push_manifest, image, each) for each in level])
    return image.root


def tag_image(
    image: Reference,
    tags: Sequence[Reference],
    *,
    registry_options: RegistryOptions | None = None,
    jobs: int = DEFAULT_JOBS,
) -> tuple[NamedTag, ...]:
    """Move tags, in their order, to the digest of ``image``.

    For tags of other repositories the image is copied there before any tag moves. A tag that has the
    digest already is left alone. Each moved tag is read again. Raise :class:`RegistryError` that states
    which tags moved and which did not.
    """
    _check_tags(image, tags)
    update = _TagUpdate(registry_options=registry_options, tags=tuple(tags))
    try:
        with _open_by_digest(image, registry_options) as source:
            root, data = source.root, source.read_document(source.root)
            for destination in {tag.name: tag for tag in tags if tag.name != image.name}.values():
                copy_image(
                    source, destination, mount_from=image, registry_options=registry_options, jobs=jobs
                )
        return tuple(update.move_tag(tag, root, data) for tag in tags)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {update.describe_progress()}") from None
    except UsageError:  # raised before the first request
        raise
    except BuildkitTasksError as error:
        raise RegistryError(f"{error.message}; {update.describe_progress()}", hint=error.hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledIndex:
    """An index made of parts: its descriptor, its bytes and the manifest digest of each platform."""

    root: Descriptor
    data: bytes = field(repr=False)
    platforms: tuple[tuple[Platform, Digest], ...]


def assemble_index(
    parts: Sequence[Reference],
    expected: Sequence[Platform] = (),
    *,
    registry_options: RegistryOptions | None = None,
) -> AssembledIndex:
    """Make one index of parts, each an image of one platform by its digest; nothing is pushed.

    A part is a manifest, or an index of one image and its attestations. Raise :class:`CheckFailed` for a
    platform that occurs twice, is missing or is not expected.
    """
    with _open_parts(parts, registry_options) as images:
        return _assemble_images(images, expected)


def push_index(
    parts: Sequence[Reference],
    destination: Reference,
    expected: Sequence[Platform] = (),
    *,
    registry_options: RegistryOptions | None = None,
    jobs: int = DEFAULT_JOBS,
) -> AssembledIndex:
    """Push the index that :func:`assemble_index` makes to a repository, by digest; no tag moves.

    Parts in other repositories are copied there first. The destination's tag is ignored.
    """
    from buildkit_tasks.oci.registry.push import open_uploader

    with _open_parts(parts, registry_options) as images:
        index = _assemble_images(images, expected)
        for part, image in images:
            if part.name != destination.name:
                copy_image(image, destination, mount_from=part, registry_options=registry_options, jobs=jobs)
    with open_uploader(destination, options=registry_options) as uploader:
        uploader.put_manifest(index.data, index.root, str(index.root.digest))
    return index


@contextlib.contextmanager
def _open_parts(
    parts: Sequence[Reference], registry_options: RegistryOptions | None
) -> Iterator[list[tuple[Reference, Image]]]:
    for part in parts:
        if part.digest is None:
            raise UsageError(
                f"the part {part} has no digest, so its content may change",
                hint="write it as REPOSITORY@sha256:...",
            )
    with contextlib.ExitStack() as stack:
        yield [(part, stack.enter_context(_open_by_digest(part, registry_options))) for part in parts]


@contextlib.contextmanager
def _open_by_digest(reference: Reference, registry_options: RegistryOptions | None) -> Iterator[Image]:
    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.registry import open_registry

    with open_registry(str(replace(reference, tag="")), options=registry_options) as source:
        yield Image(source)


def _assemble_images(
    images: Sequence[tuple[Reference, Image]], expected: Sequence[Platform]
) -> AssembledIndex:
    from buildkit_tasks.oci.copy.index import merge_parts, read_part
    from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest

    parts = [read_part(image, str(reference)) for reference, image in images]
    data = merge_parts(parts, expected)
    digests = {part.platform: Digest(part.image["digest"]) for part in parts}
    return AssembledIndex(
        root=Descriptor(media_type=OCI_INDEX, digest=Digest.from_bytes(data), size=len(data)),
        data=data,
        platforms=tuple((platform, digests[platform]) for platform in expected or digests),
    )


def _check_tags(image: Reference, tags: Sequence[Reference]) -> None:
    if image.digest is None:
        raise UsageError(f"{image} has no digest to be tagged", hint="write it as REPOSITORY@sha256:...")
    for tag in tags:
        if tag.digest is not None or not tag.tag:
            raise UsageError(f"{tag} is not a valid tag", hint="write it as REGISTRY/NAME:TAG")


@dataclass(kw_only=True)
class _TagUpdate:
    """The progress of moving several tags.

    ============= ==========================================================================
    a tag is in   after
    ============= ==========================================================================
    neither       nothing, a rejected request, or a tag that had the digest already
    ``uncertain`` a request without a response that we received
    ``moved``     the registry has the digest under the tag, as read again
    ============= ==========================================================================
    """

    registry_options: RegistryOptions | None
    tags: tuple[Reference, ...]
    moved: set[Reference] = field(default_factory=set)
    uncertain: set[Reference] = field(default_factory=set)

    def move_tag(self, tag: Reference, root: Descriptor, data: bytes) -> NamedTag:
        """Move one tag to a document and check that it is still there."""
        from buildkit_tasks.oci.registry.push import open_uploader

        with open_uploader(tag, options=self.registry_options) as uploader:
            previous = uploader.get_digest(tag.tag)
            if previous != root.digest:
                self._put_tag(uploader, tag, root, data)
        return NamedTag(
            ref=str(tag),
            digest=str(root.digest),
            previous=str(previous or ""),
            moved=previous != root.digest,
        )

    def _put_tag(self, uploader: Uploader, tag: Reference, root: Descriptor, data: bytes) -> None:
        from buildkit_tasks.oci.registry.errors import RequestRejected

        self.uncertain.add(tag)
        try:
            uploader.put_manifest(data, root, tag.tag)
        except RequestRejected:
            self.uncertain.discard(tag)
            raise
        actual = uploader.get_digest(tag.tag)
        self.uncertain.discard(tag)
        if actual != root.digest:
            new_target = f"to {actual}" if actual else "away"
            raise RegistryError(
                f"a rival push moved {tag} {new_target}, after it was put at {root.digest}",
                hint="find out who else pushes that tag, then push again",
            )
        self.moved.add(tag)

    def describe_progress(self) -> str:
        """Return which tags moved, which did not, and of which that is not known."""
        groups = {
            "moved": self.moved,
            "not known whether moved": self.uncertain,
            "not moved": set(self.tags) - self.moved - self.uncertain,
        }
        names = {label: [str(tag) for tag in self.tags if tag in tags] for label, tags in groups.items()}
        return "; ".join(f"{label}: {', '.join(tags)}" for label, tags in names.items() if tags)


def run_parallel(jobs: int, uploader: Uploader, tasks: Sequence[Callable[[], object]]) -> None:
    """Run the tasks, ``jobs`` at a time. The first error, or Ctrl-C, ends the others at once."""
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
