"""Parse an image's documents: index, manifest, configuration.

OCI image specification v1.1 ("Image Index", "Image Manifest", "Image Configuration", "Content
Descriptors") and Docker's image manifest version 2, schema 2. Every parser raises
:class:`MalformedImage`, which names the document and the problem.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.document_keys import CONFIG, INDEX, MANIFEST, check_keys, fold_key
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.oci.document_keys import KeyTable

__all__ = [
    "CONFIG_TYPES",
    "EMPTY_CONFIG",
    "IMAGE_NAME_ANNOTATION",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "Descriptor",
    "Digest",
    "ImageConfig",
    "Index",
    "Manifest",
    "parse_config",
    "parse_index",
    "parse_manifest",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
INDEX_TYPES = frozenset({OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
CONFIG_TYPES = frozenset({OCI_CONFIG, "application/vnd.docker.container.image.v1+json"})

IMAGE_NAME_ANNOTATION = "io.containerd.image.name"

_REFERENCE_TYPE_ANNOTATION = "vnd.docker.reference.type"
_FOREIGN_LAYER_MARKERS = (".nondistributable.", ".foreign.")
_SCHEMA_VERSION = 2

_DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Digest:
    """A content digest: ``sha256:`` or ``sha512:`` and lower-case hex (OCI image specification, "Digests").

    It becomes part of file names, so the whole text has to match: no path separator, no trailing newline.
    """

    text: str

    def __post_init__(self) -> None:
        if not _DIGEST_PATTERN.fullmatch(self.text):
            raise MalformedImage(f"{self.text[:160]!r} is not a valid digest (sha256: and 64 hex digits)")

    def __str__(self) -> str:
        return self.text

    @property
    def algorithm(self) -> str:
        """The name of the hash function."""
        return self.text.partition(":")[0]

    @property
    def hex(self) -> str:
        """The digest without its algorithm: a safe file name."""
        return self.text.partition(":")[2]

    @property
    def blob_path(self) -> str:
        """The blob's path in an OCI image layout."""
        return f"blobs/{self.algorithm}/{self.hex}"

    @classmethod
    def from_bytes(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of ``data``."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A reference to a blob (OCI image specification, "Content Descriptors")."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    os_version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    urls: tuple[str, ...] = ()

    @property
    def is_attestation(self) -> bool:
        """True if this index entry describes another image (provenance, SBOM) and is not one itself.

        BuildKit marks attestations by an annotation, by platform unknown/unknown, or as OCI artifacts.
        An entry with a real platform is never an attestation, whatever else it claims: engines select
        by platform alone and would run it.
        """
        if self.platform is not None:
            return (self.platform.os, self.platform.architecture) == ("unknown", "unknown")
        # crane writes the media type of an image's config into artifactType.
        is_artifact = bool(self.artifact_type) and self.artifact_type not in CONFIG_TYPES
        return is_artifact or self.annotations.get(_REFERENCE_TYPE_ANNOTATION) == "attestation-manifest"

    @property
    def is_foreign_layer(self) -> bool:
        """True for a layer that an image need not carry ("Non-Distributable Layers"; Docker: foreign)."""
        return any(marker in self.media_type for marker in _FOREIGN_LAYER_MARKERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """An image index (Docker: manifest list): one descriptor per platform, plus attestations."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One platform's image: its config and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @property
    def is_artifact(self) -> bool:
        """True if the manifest does not describe an image: OCI artifacts have an empty config."""
        return self.config.media_type not in CONFIG_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """An image configuration: its platform, the process to start and the layers' diff_ids."""

    os: str
    architecture: str
    variant: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    diff_ids: tuple[Digest, ...] = ()

    @property
    def platform(self) -> Platform:
        """The stated platform, normalised by the rules of containerd."""
        return Platform.normalize(self.os, self.architecture, self.variant)


def parse_index(data: bytes, media_type: str = OCI_INDEX) -> Index:
    """Parse an image index whose descriptor states ``media_type``."""
    document = load_object(data, "the image index")
    raw = _convert_document(document, INDEX, _RawIndex, "the image index")
    _check_document_kind(
        document, raw, media_type, ("layers", "config", "fsLayers", "history"), "the image index"
    )
    manifests = tuple(_parse_descriptor(item) for item in raw.manifests)
    return Index(media_type=media_type, manifests=manifests, annotations=raw.annotations or {})


def parse_manifest(data: bytes, media_type: str = OCI_MANIFEST) -> Manifest:
    """Parse an image manifest whose descriptor states ``media_type``."""
    document = load_object(data, "the image manifest")
    raw = _convert_document(document, MANIFEST, _RawManifest, "the image manifest")
    _check_document_kind(
        document, raw, media_type, ("manifests", "fsLayers", "history"), "the image manifest"
    )
    layers = raw.layers or []
    if len(layers) > LIMITS.layers:
        raise MalformedImage(
            f"the image manifest has {len(layers)} layers; at most {LIMITS.layers} are allowed"
        )
    return Manifest(
        media_type=media_type,
        config=_parse_descriptor(raw.config),
        layers=tuple(_parse_descriptor(item) for item in layers),
        annotations=raw.annotations or {},
        artifact_type=raw.artifact_type or "",
        subject=_parse_descriptor(raw.subject) if raw.subject else None,
    )


def parse_config(data: bytes) -> ImageConfig:
    """Parse an image configuration; Docker writes ``null`` for an empty list."""
    document = _rename_rootfs(load_object(data, "the image config"))
    raw = _convert_document(document, CONFIG, _RawConfig, "the image config")
    execution = raw.config or _RawExecutionParams()
    return ImageConfig(
        os=raw.os,
        architecture=raw.architecture,
        variant=raw.variant or "",
        entrypoint=tuple(execution.entrypoint or ()),
        cmd=tuple(execution.cmd or ()),
        env=tuple(execution.env or ()),
        working_dir=execution.working_dir or "",
        user=execution.user or "",
        diff_ids=tuple(Digest(text) for text in raw.rootfs.diff_ids or ()),
    )


# The JSON documents; msgspec checks the types.

_BlobSize = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_ShortString = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _RawPlatform(msgspec.Struct, frozen=True, kw_only=True):
    os: _ShortString
    architecture: _ShortString
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")


class _RawDescriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    media_type: _ShortString
    digest: str
    size: _BlobSize
    platform: _RawPlatform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    urls: list[str] | None = None


class _RawDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int
    media_type: str | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None


class _RawIndex(_RawDocument, frozen=True, kw_only=True, rename="camel"):
    manifests: list[_RawDescriptor]


class _RawManifest(_RawDocument, frozen=True, kw_only=True, rename="camel"):
    config: _RawDescriptor
    layers: list[_RawDescriptor] | None  # null of an image without layers, as Go writes an empty list
    subject: _RawDescriptor | None = None


class _RawExecutionParams(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None


class _RawRootfs(msgspec.Struct, frozen=True, kw_only=True):
    diff_ids: list[str] | None = None


class _RawConfig(msgspec.Struct, frozen=True, kw_only=True):
    os: _ShortString
    architecture: _ShortString
    rootfs: _RawRootfs
    variant: str | None = None
    config: _RawExecutionParams | None = None


_StructT = TypeVar("_StructT", bound=msgspec.Struct)


def _convert_document(
    document: dict[str, Any], keys: KeyTable, struct_type: type[_StructT], description: str
) -> _StructT:
    check_keys(document, keys, description)
    try:
        return msgspec.convert(document, struct_type)
    except msgspec.ValidationError as error:
        raise MalformedImage(f"{description} is malformed: {error}") from None


def _rename_rootfs(document: dict[str, Any]) -> dict[str, Any]:
    """Accept one key such as ``rootfS``, which Microsoft's Windows images have, for ``rootfs``.

    The field is required, so a reader that compares keys exactly reads nothing else: it rejects the image.
    """
    variants = [key for key in document if fold_key(key) == "rootfs"]
    if len(variants) != 1:
        return document
    return {"rootfs" if key == variants[0] else key: value for key, value in document.items()}


def _check_document_kind(
    document: dict[str, Any],
    raw: _RawDocument,
    media_type: str,
    foreign_keys: tuple[str, ...],
    description: str,
) -> None:
    """Reject a document that readers could take for another kind: CVE-2021-41190, GHSA-77vh-xpmg-72qh."""
    if raw.schema_version != _SCHEMA_VERSION:
        raise MalformedImage(f"{description} has schemaVersion {raw.schema_version}, not {_SCHEMA_VERSION}")
    keys = {fold_key(key): key for key in document}
    conflicting = [keys[fold_key(name)] for name in foreign_keys if fold_key(name) in keys]
    if conflicting:
        raise MalformedImage(
            f"{description} also has {conflicting[0]!r}: it is an index and a manifest at once"
        )
    if raw.media_type is not None and raw.media_type != media_type:
        raise MalformedImage(
            f"{description} has mediaType {raw.media_type!r}, but its descriptor states {media_type!r}"
        )


def _parse_descriptor(raw: _RawDescriptor) -> Descriptor:
    raw_platform, platform = raw.platform, None
    if raw_platform is not None:
        platform = Platform.normalize(raw_platform.os, raw_platform.architecture, raw_platform.variant or "")
    return Descriptor(
        media_type=raw.media_type,
        digest=Digest(raw.digest),
        size=raw.size,
        platform=platform,
        os_version=(raw_platform and raw_platform.os_version) or "",
        annotations=raw.annotations or {},
        artifact_type=raw.artifact_type or "",
        urls=tuple(raw.urls or ()),
    )
