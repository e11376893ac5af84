"""What follows from a source's two methods, whichever source it is.

Which platforms an image has, their manifests and configurations, and what else its index lists.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Digest,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from buildkit_tasks.oci.source import Source, open_verified, read_blob
from buildkit_tasks.oci.transports import find_local_output, open_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.platforms import Platform

__all__ = [
    "IndexEntry",
    "IndexEntryKind",
    "Source",
    "attested_images",
    "find_local_output",
    "index_entries",
    "is_missing",
    "open_image",
    "open_verified",
    "platform_manifests",
    "read_blob",
    "read_config",
    "read_index",
    "read_manifest",
    "read_order",
]

_MAX_INDEX_DEPTH = 3  # an index in an index.json, and one more: deeper ones are nobody's image
_REFERENCE_DIGEST_ANNOTATION = "vnd.docker.reference.digest"


def read_index(source: Source) -> Index:
    """The image's index; of an image that is a single manifest, an index of just that."""
    root = source.root_descriptor()
    if root.media_type in INDEX_TYPES:
        return parse_index(read_blob(source, root, LIMITS.document_bytes), root.media_type)
    return Index(media_type=root.media_type, manifests=(root,))


def read_manifest(source: Source, descriptor: Descriptor) -> Manifest:
    """The manifest that an index entry points to."""
    if descriptor.media_type not in MANIFEST_TYPES:
        raise MalformedImage(f"{descriptor.digest} is {descriptor.media_type!r}, which is no image manifest")
    return parse_manifest(read_blob(source, descriptor, LIMITS.document_bytes), descriptor.media_type)


def read_config(source: Source, manifest: Manifest) -> ImageConfig:
    """The configuration of one platform's image."""
    if manifest.is_artifact:
        raise MalformedImage(f"the config is {manifest.config.media_type!r}, which is no image config")
    return parse_config(read_blob(source, manifest.config, LIMITS.document_bytes))


class IndexEntryKind(enum.Enum):
    """What an entry of an index is."""

    IMAGE = "image"
    ATTESTATION = "attestation"
    ARTIFACT = "artifact"
    INDEX = "index"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """An entry of the image's index, or of one that is nested in it.

    ``index`` is the digest of the index that lists it. ``platform`` is that of an image without
    one in its entry, too: its configuration states it.
    """

    descriptor: Descriptor
    kind: IndexEntryKind
    index_digest: Digest
    platform: Platform | None = None


def index_entries(source: Source) -> tuple[IndexEntry, ...]:
    """Everything that the image's index lists, in its order, a nested index before what is in it.

    A nested index that the source :func:`lacks` is not gone into.
    """
    root = source.root_descriptor()
    entries: list[IndexEntry] = []
    for count, (index_digest, entry) in enumerate(
        _iter_entries(source, root.digest, read_index(source), _MAX_INDEX_DEPTH)
    ):
        if count >= LIMITS.manifests:
            raise LimitExceeded(f"the image index has more than {LIMITS.manifests} entries")
        kind, platform = _classify_entry(source, entry)
        entries.append(IndexEntry(descriptor=entry, kind=kind, index_digest=index_digest, platform=platform))
    return tuple(entries)


def platform_manifests(source: Source) -> tuple[tuple[Platform, Descriptor], ...]:
    """Every platform that the image names, with its manifest's descriptor, in the index's order.

    Attestations and artifacts are no platforms. A platform that is there twice is there twice in
    the answer. An entry without a platform has the one that its configuration states.
    """
    return tuple(
        (entry.platform, entry.descriptor)
        for entry in index_entries(source)
        if entry.kind is IndexEntryKind.IMAGE and entry.platform is not None
    )


def attested_images(source: Source, entry: Descriptor) -> tuple[Digest, ...]:
    """The images that an attestation says it is about: one, unless it contradicts itself, or none.

    BuildKit's two forms: an annotation of the index entry, and the ``subject`` of an OCI artifact.
    Raises :class:`MalformedImage` if its manifest cannot be read or names something that is no digest.
    """
    digests: dict[Digest, None] = {}
    if _REFERENCE_DIGEST_ANNOTATION in entry.annotations:
        digests[Digest(entry.annotations[_REFERENCE_DIGEST_ANNOTATION])] = None
    if entry.media_type in MANIFEST_TYPES:
        subject = read_manifest(source, entry).subject
        if subject is not None:
            digests[subject.digest] = None
    return tuple(digests)


def _iter_entries(
    source: Source, index_digest: Digest, index: Index, depth: int
) -> Iterator[tuple[Digest, Descriptor]]:
    """Every entry, an index before what is in it, so that counting them bounds the reading."""
    for entry in index.manifests:
        yield index_digest, entry
        if entry.media_type in INDEX_TYPES:
            if depth == 1:
                raise MalformedImage(f"{entry.digest}: indexes are nested more than {_MAX_INDEX_DEPTH} deep")
            if is_missing(source, entry):
                continue
            nested = parse_index(read_blob(source, entry, LIMITS.document_bytes), entry.media_type)
            yield from _iter_entries(source, entry.digest, nested, depth - 1)


def _classify_entry(source: Source, entry: Descriptor) -> tuple[IndexEntryKind, Platform | None]:
    if entry.media_type in INDEX_TYPES:
        return IndexEntryKind.INDEX, None
    if entry.is_attestation:
        return IndexEntryKind.ATTESTATION, None
    if entry.media_type not in MANIFEST_TYPES:
        return IndexEntryKind.ARTIFACT, None
    if entry.platform is not None:
        return IndexEntryKind.IMAGE, entry.platform
    manifest = read_manifest(source, entry)
    if manifest.is_artifact:
        return IndexEntryKind.ARTIFACT, None
    return IndexEntryKind.IMAGE, read_config(source, manifest).platform


# What some sources can do besides.


@runtime_checkable
class _PartialSource(Protocol):
    def is_missing(self, descriptor: Descriptor) -> bool: ...


@runtime_checkable
class _OrderedSource(Protocol):
    def read_order(self, descriptor: Descriptor) -> int: ...


def is_missing(source: Source, descriptor: Descriptor) -> bool:
    """Whether the source is known to have only a part of the image, and not this entry's content.

    So it is with an engine that pulled one platform of an image. Elsewhere what is missing is a fault.
    """
    return isinstance(source, _PartialSource) and source.is_missing(descriptor)


def read_order(source: Source, descriptor: Descriptor) -> int:
    """Where the blob lies in its source: reading in this order is fastest; 0 where any order is."""
    return source.read_order(descriptor) if isinstance(source, _OrderedSource) else 0
