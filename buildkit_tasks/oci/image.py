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
from buildkit_tasks.oci.transports import local_folder, open_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.platforms import Platform

__all__ = [
    "IndexEntry",
    "Kind",
    "Source",
    "attested",
    "config_of",
    "index_entries",
    "index_of",
    "lacks",
    "local_folder",
    "manifest_of",
    "open_image",
    "open_verified",
    "platform_manifests",
    "position",
    "read_blob",
]

_DEPTH = 3  # an index in an index.json, and one more: deeper ones are nobody's image
_REFERENCE_DIGEST = "vnd.docker.reference.digest"


def index_of(source: Source) -> Index:
    """The image's index; of an image that is a single manifest, an index of just that."""
    root = source.root()
    if root.media_type in INDEX_TYPES:
        return parse_index(read_blob(source, root, LIMITS.document), root.media_type)
    return Index(media_type=root.media_type, manifests=(root,))


def manifest_of(source: Source, descriptor: Descriptor) -> Manifest:
    """The manifest that an index entry points to."""
    if descriptor.media_type not in MANIFEST_TYPES:
        raise MalformedImage(f"{descriptor.digest} is {descriptor.media_type!r}, which is no image manifest")
    return parse_manifest(read_blob(source, descriptor, LIMITS.document), descriptor.media_type)


def config_of(source: Source, manifest: Manifest) -> ImageConfig:
    """The configuration of one platform's image."""
    if manifest.is_artifact:
        raise MalformedImage(f"the config is {manifest.config.media_type!r}, which is no image config")
    return parse_config(read_blob(source, manifest.config, LIMITS.document))


class Kind(enum.Enum):
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
    kind: Kind
    index: Digest
    platform: Platform | None = None


def index_entries(source: Source) -> tuple[IndexEntry, ...]:
    """Everything that the image's index lists, in its order, a nested index before what is in it.

    A nested index that the source :func:`lacks` is not gone into.
    """
    root = source.root()
    found: list[IndexEntry] = []
    for count, (index, entry) in enumerate(_entries(source, root.digest, index_of(source), _DEPTH)):
        if count >= LIMITS.manifests:
            raise LimitExceeded(f"the image index has more than {LIMITS.manifests} entries")
        kind, platform = _kind(source, entry)
        found.append(IndexEntry(descriptor=entry, kind=kind, index=index, platform=platform))
    return tuple(found)


def platform_manifests(source: Source) -> tuple[tuple[Platform, Descriptor], ...]:
    """Every platform that the image names, with its manifest's descriptor, in the index's order.

    Attestations and artifacts are no platforms. A platform that is there twice is there twice in
    the answer. An entry without a platform has the one that its configuration states.
    """
    return tuple(
        (entry.platform, entry.descriptor)
        for entry in index_entries(source)
        if entry.kind is Kind.IMAGE and entry.platform is not None
    )


def attested(source: Source, entry: Descriptor) -> tuple[Digest, ...]:
    """The images that an attestation says it is about: one, unless it contradicts itself, or none.

    BuildKit's two forms: an annotation of the index entry, and the ``subject`` of an OCI artifact.
    Raises :class:`MalformedImage` if its manifest cannot be read or names something that is no digest.
    """
    found: dict[Digest, None] = {}
    if _REFERENCE_DIGEST in entry.annotations:
        found[Digest(entry.annotations[_REFERENCE_DIGEST])] = None
    if entry.media_type in MANIFEST_TYPES:
        subject = manifest_of(source, entry).subject
        if subject is not None:
            found[subject.digest] = None
    return tuple(found)


def _entries(source: Source, here: Digest, index: Index, depth: int) -> Iterator[tuple[Digest, Descriptor]]:
    """Every entry, an index before what is in it, so that counting them bounds the reading."""
    for entry in index.manifests:
        yield here, entry
        if entry.media_type in INDEX_TYPES:
            if depth == 1:
                raise MalformedImage(f"{entry.digest}: indexes are nested more than {_DEPTH} deep")
            if lacks(source, entry):
                continue
            nested = parse_index(read_blob(source, entry, LIMITS.document), entry.media_type)
            yield from _entries(source, entry.digest, nested, depth - 1)


def _kind(source: Source, entry: Descriptor) -> tuple[Kind, Platform | None]:
    if entry.media_type in INDEX_TYPES:
        return Kind.INDEX, None
    if entry.is_attestation:
        return Kind.ATTESTATION, None
    if entry.media_type not in MANIFEST_TYPES:
        return Kind.ARTIFACT, None
    if entry.platform is not None:
        return Kind.IMAGE, entry.platform
    manifest = manifest_of(source, entry)
    if manifest.is_artifact:
        return Kind.ARTIFACT, None
    return Kind.IMAGE, config_of(source, manifest).platform


# What some sources can do besides.


@runtime_checkable
class _Partial(Protocol):
    def lacks(self, descriptor: Descriptor) -> bool: ...


@runtime_checkable
class _Ordered(Protocol):
    def position(self, descriptor: Descriptor) -> int: ...


def lacks(source: Source, descriptor: Descriptor) -> bool:
    """Whether the source is known to have only a part of the image, and not this entry's content.

    So it is with an engine that pulled one platform of an image. Elsewhere what is missing is a fault.
    """
    return isinstance(source, _Partial) and source.lacks(descriptor)


def position(source: Source, descriptor: Descriptor) -> int:
    """Where the blob lies in its source: reading in this order is fastest; 0 where any order is."""
    return source.position(descriptor) if isinstance(source, _Ordered) else 0
