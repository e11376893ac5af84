"""An image over any source: its index, manifests and configurations, and what they list.

OCI image specification, "Image Index", "Image Manifest" and "Image Configuration".
"""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, runtime_checkable

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
from buildkit_tasks.oci.source import Source, read_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildkit_tasks.platforms import Platform

__all__ = ["REFERENCE_DIGEST_ANNOTATION", "Image", "IndexEntry", "IndexEntryKind"]

_MAX_INDEX_DEPTH = 3  # the image's index, one in it (as in an index.json), and one more
_MAX_CACHED_BYTES = 16 << 20  # of documents; an image of ten platforms usually has less than 1 MB
REFERENCE_DIGEST_ANNOTATION = "vnd.docker.reference.digest"

_ContentKey = tuple[str, Digest, int]
_Document = TypeVar("_Document")


class IndexEntryKind(enum.Enum):
    """What an entry of an index describes."""

    IMAGE = "image"
    ATTESTATION = "attestation"
    ARTIFACT = "artifact"
    INDEX = "index"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """An entry of the image's index or of a nested index.

    ``platform`` is set for images only. Where the entry states none, it is that of the configuration.
    """

    descriptor: Descriptor
    kind: IndexEntryKind
    platform: Platform | None = None


@runtime_checkable
class _PartialSource(Protocol):
    """A source that may hold only some blobs of its image."""

    def is_missing(self, descriptor: Descriptor) -> bool: ...


@runtime_checkable
class _OrderedSource(Protocol):
    """A source that is read fastest in a certain order of its blobs."""

    def read_order(self, descriptor: Descriptor) -> int: ...


class Image:
    """An image whose documents are read, hashed and parsed once; a :class:`Source` itself.

    Pass it on instead of its source::

        image = Image(source)
        for platform, entry in image.platform_manifests:
            layers, diff_ids = image.manifest(entry).layers, image.config(entry).diff_ids

    Layers are not kept, nor documents with errors or past ``_MAX_CACHED_BYTES``: those are read each time.
    Threads may share an image; two that ask for a document at the same time may both read it.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._documents: dict[_ContentKey, bytes] = {}
        self._parsed: dict[_ContentKey, Any] = {}
        self._free_bytes = _MAX_CACHED_BYTES

    @classmethod
    def wrap(cls, source: Source) -> Image:
        """Return the source itself if it is an image already, else an image over it."""
        return source if isinstance(source, cls) else cls(source)

    # The source.

    @cached_property
    def root(self) -> Descriptor:
        """The descriptor of the image: an index or a single manifest."""
        return self.source.root_descriptor()

    def root_descriptor(self) -> Descriptor:
        """Return :attr:`root`."""
        return self.root

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob, from memory if it is a document that was read before."""
        data = self._documents.get(_content_key(descriptor))
        return self.source.open(descriptor) if data is None else io.BytesIO(data)

    def read_order(self, descriptor: Descriptor) -> int:
        """Return the blob's position in the source: reading by increasing position is fastest."""
        return self.source.read_order(descriptor) if isinstance(self.source, _OrderedSource) else 0

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Return True if the source is known to lack this blob or, for a manifest, one that it lists.

        An engine's containerd store keeps the whole index of an image of which it pulled one platform.
        In every other source a blob that is missing is an error.
        """
        source = self.source
        if not isinstance(source, _PartialSource):
            return False
        try:
            return source.is_missing(descriptor) or any(map(source.is_missing, self.blobs(descriptor)))
        except (MalformedImage, LimitExceeded):
            return False

    # Documents.

    @cached_property
    def index(self) -> Index:
        """The image's index; for a single manifest, an index that lists only that."""
        return self._read_index(self.root)

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """Return the manifest that an index entry describes."""
        if descriptor.media_type not in MANIFEST_TYPES:
            raise MalformedImage(
                f"{descriptor.digest} is {descriptor.media_type!r}, which is not an image manifest"
            )
        return self._parse(descriptor, lambda data: parse_manifest(data, descriptor.media_type))

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """Return the configuration of the platform whose manifest an index entry describes."""
        manifest = self.manifest(descriptor)
        if manifest.is_artifact:
            raise MalformedImage(
                f"the config is {manifest.config.media_type!r}, which is not an image config"
            )
        return self._parse(manifest.config, parse_config)

    def blobs(self, descriptor: Descriptor) -> tuple[Descriptor, ...]:
        """Return the configuration and the layers of a manifest; nothing for another media type."""
        if descriptor.media_type not in MANIFEST_TYPES:
            return ()
        manifest = self.manifest(descriptor)
        return (manifest.config, *manifest.layers)

    def read_document(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of an index, a manifest or a configuration."""
        key = _content_key(descriptor)
        data = self._documents.get(key)
        if data is None:
            data = read_blob(self.source, descriptor, LIMITS.document_bytes)
            if len(data) <= self._free_bytes:
                self._free_bytes -= len(data)
                self._documents[key] = data
        return data

    def _read_index(self, descriptor: Descriptor) -> Index:
        if descriptor.media_type not in INDEX_TYPES:
            return Index(media_type=descriptor.media_type, manifests=(descriptor,))
        return self._parse(descriptor, lambda data: parse_index(data, descriptor.media_type))

    def _parse(self, descriptor: Descriptor, parse: Callable[[bytes], _Document]) -> _Document:
        key = _content_key(descriptor)
        document: _Document | None = self._parsed.get(key)
        if document is None:
            document = parse(self.read_document(descriptor))
            if key in self._documents:
                self._parsed[key] = document
        return document

    # Walks.

    def iter_entries(
        self, root: Descriptor | None = None, is_missing: Callable[[Descriptor], bool] | None = None
    ) -> Iterator[Descriptor]:
        """Yield every entry of the image's index or of ``root``'s, a nested index before its entries.

        All other walks over an image's documents use this one. A nested index for which :meth:`is_missing`
        returns True has no entries. Raise :class:`MalformedImage` if indexes are nested too deeply and
        :class:`LimitExceeded` for too many entries in all: a few small indexes that list one another many
        times expand to billions.
        """
        is_missing = is_missing or self.is_missing
        nested, count = [iter(self._read_index(root or self.root).manifests)], 0
        while nested:
            entry = next(nested[-1], None)
            if entry is None:
                nested.pop()
                continue
            count += 1
            if count > LIMITS.manifests:
                raise LimitExceeded(f"the image index has more than {LIMITS.manifests} entries")
            yield entry
            if entry.media_type in INDEX_TYPES:
                if len(nested) == _MAX_INDEX_DEPTH:
                    raise MalformedImage(f"{entry.digest}: indexes are nested more than {len(nested)} deep")
                if not is_missing(entry):
                    nested.append(iter(self._read_index(entry).manifests))

    @cached_property
    def entries(self) -> tuple[IndexEntry, ...]:
        """Every entry of the index and of nested indexes, in order, with its kind."""
        return tuple(map(self._make_entry, self.iter_entries()))

    @property
    def platform_manifests(self) -> tuple[tuple[Platform, Descriptor], ...]:
        """The platforms of the image with their manifests, in the index's order.

        Attestations and artifacts have no platform. A platform that is listed twice is returned twice.
        """
        return tuple(
            (entry.platform, entry.descriptor) for entry in self.entries if entry.platform is not None
        )

    def reachable(self, root: Descriptor | None = None) -> tuple[Descriptor, ...]:
        """Return the root and everything it lists, each once; a document after all that it lists.

        Raise :class:`MalformedImage` if the source has only a part of the image.
        """
        root = root or self.root
        listed = [root, *self.iter_entries(root)]
        for entry in listed:
            if self.is_missing(entry):
                platform = f" ({entry.platform})" if entry.platform else ""
                raise MalformedImage(
                    f"{entry.digest}{platform} is not here: the source has only a part of the image"
                )
        blobs = [blob for entry in listed for blob in self.blobs(entry)]
        # In `listed` an index comes before its entries wherever it is listed; the dict keeps the last place.
        return tuple({_content_key(each): each for each in (*blobs, *reversed(listed))}.values())

    def attested_images(self, entry: Descriptor) -> tuple[Digest, ...]:
        """Return the digests of the images that an attestation states it is about: one, if it is sound.

        BuildKit writes either an annotation of the index entry, or the ``subject`` of an OCI artifact
        (its docs/attestations/attestation-storage.md). Raise :class:`MalformedImage` if the manifest
        cannot be read or states something that is not a digest.
        """
        digests: dict[Digest, None] = {}
        if REFERENCE_DIGEST_ANNOTATION in entry.annotations:
            digests[Digest(entry.annotations[REFERENCE_DIGEST_ANNOTATION])] = None
        if entry.media_type in MANIFEST_TYPES:
            subject = self.manifest(entry).subject
            if subject is not None:
                digests[subject.digest] = None
        return tuple(digests)

    def _make_entry(self, descriptor: Descriptor) -> IndexEntry:
        kind, platform = self._classify(descriptor), None
        if kind is IndexEntryKind.IMAGE:
            platform = descriptor.platform or self.config(descriptor).platform
        return IndexEntry(descriptor=descriptor, kind=kind, platform=platform)

    def _classify(self, entry: Descriptor) -> IndexEntryKind:
        if entry.media_type in INDEX_TYPES:
            return IndexEntryKind.INDEX
        if entry.is_attestation:
            return IndexEntryKind.ATTESTATION
        if entry.media_type not in MANIFEST_TYPES:
            return IndexEntryKind.ARTIFACT
        if entry.platform is None and self.manifest(entry).is_artifact:
            return IndexEntryKind.ARTIFACT
        return IndexEntryKind.IMAGE


def _content_key(descriptor: Descriptor) -> _ContentKey:
    """Return what decides which document is read: annotations, for example, do not."""
    return descriptor.media_type, descriptor.digest, descriptor.size
