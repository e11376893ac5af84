"""The docker-archive transport: archives of ``docker save``, compressed or not.

Two formats exist. Since Docker 25 the archive is an OCI layout with a ``manifest.json`` beside its
``index.json``; the layout is read, as it has more digests to check. Older archives, and those of skopeo
and podman, have ``manifest.json`` alone (moby, ``image/spec/v1.2.md``); an image manifest is generated
for the selected image.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import posixpath
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.decompress import GZIP, PLAIN, ZSTD, detect_compression
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Manifest,
    parse_config,
    parse_index,
)
from buildkit_tasks.oci.transports.docker_manifest import (
    MANIFEST_NAME,
    LayerSource,
    SavedImage,
    choose_image,
    choose_number,
    describe_choices,
    parse_docker_manifest,
)
from buildkit_tasks.oci.transports.layout import choose_root, collect_entry_names, missing_blob_error
from buildkit_tasks.oci.transports.oci_archive import ArchivedLayout, open_tar_archive
from buildkit_tasks.oci.transports.tar_members import ArchiveIndex, TarArchive, read_member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DockerArchive", "DockerLayoutArchive", "open_docker_archive", "open_saved_image"]

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_LAYER_TYPE_BY_COMPRESSION = {PLAIN: _LAYER_TYPE, GZIP: f"{_LAYER_TYPE}+gzip", ZSTD: f"{_LAYER_TYPE}+zstd"}
# Names that contain the config's digest: Docker's old and new ones, and crane's.
_CONFIG_NAME = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?", re.ASCII)
_MAX_LINKS = 8


def open_docker_archive(path: Path, reference: str | None = None) -> DockerLayoutArchive | DockerArchive:
    """Open an image in a ``docker save`` archive; ``reference`` (a name or ``@N``) selects one of several."""
    archive = open_tar_archive(path)
    try:
        return open_saved_image(archive, reference)
    except BaseException:
        archive.close()
        raise


def open_saved_image(
    archive: TarArchive, reference: str | None = None
) -> DockerLayoutArchive | DockerArchive:
    """Return the image in an archive, which is closed with it.

    Raises :class:`UsageError` if it is not a ``docker save`` archive.
    """
    archive_index = archive.archive_index
    if "index.json" in archive_index.files:
        return DockerLayoutArchive(archive, reference)
    if MANIFEST_NAME in archive_index.files:
        return DockerArchive(archive, reference)
    cause = f"it has neither {MANIFEST_NAME} nor index.json"
    if "repositories" in archive_index.files:
        cause = f"it has no {MANIFEST_NAME}, as before docker 1.10"
    raise UsageError(f"{archive_index.description} is not a `docker save` archive: {cause}")


class DockerLayoutArchive(ArchivedLayout):
    """The newer format: an OCI layout, whose ``manifest.json`` has to list the same images."""

    def __init__(self, archive: TarArchive, reference: str | None = None) -> None:
        super().__init__(archive, functools.partial(_choose_entry, reference=reference))
        self._is_consistent = MANIFEST_NAME not in archive.archive_index.files

    def root_descriptor(self) -> Descriptor:
        """Return the selected image. Raises :class:`MalformedImage` if ``manifest.json`` has others.

        Engines differ in which of the two files they load from; if they disagreed, an engine could load
        another image than the one that was verified.
        """
        root = super().root_descriptor()
        if not self._is_consistent:
            self._check_docker_manifest()
            self._is_consistent = True
        return root

    def _check_docker_manifest(self) -> None:
        try:
            layers_by_config = {
                manifest.config.digest.hex: [layer.digest.blob_path for layer in manifest.layers]
                for manifest in self._iter_manifests()
            }
        except (MalformedImage, LimitExceeded):
            return  # a malformed document is reported by whoever reads the image that needs it
        for image in parse_docker_manifest(read_member(self._archive, MANIFEST_NAME, LIMITS.document_bytes)):
            match = _CONFIG_NAME.fullmatch(image.config)
            if match is None or match[1] not in layers_by_config:
                raise MalformedImage(
                    f"{MANIFEST_NAME} has the config {image.config}, which no image of index.json has"
                )
            has_blob_paths = all(layer.startswith("blobs/") for layer in image.layers)
            if has_blob_paths and list(image.layers) != layers_by_config[match[1]]:
                raise MalformedImage(f"{MANIFEST_NAME} has other layers for {image.config} than index.json")

    def _iter_manifests(self) -> Iterator[Manifest]:
        """Yield every manifest in the layout, of all images, as far as their blobs are in the archive."""
        image = Image(self)
        for root in filter(self.has_blob, parse_index(self._index).manifests):
            for entry in image.iter_entries(root, is_missing=lambda entry: not self.has_blob(entry)):
                if entry.media_type in MANIFEST_TYPES and self.has_blob(entry):
                    yield image.manifest(entry)


def _choose_entry(data: bytes, reference: str | None) -> Descriptor:
    """Return the entry of an ``index.json`` that the reference selects."""
    entries = list({entry.digest: entry for entry in parse_index(data).manifests}.values())
    names = [sorted(collect_entry_names(entry)) for entry in entries]
    if reference is not None:
        return entries[choose_number(names, reference)]
    try:
        return choose_root(data, None)
    except UsageError as error:
        raise UsageError(error.message, hint=describe_choices(names)) from None


class DockerArchive:
    """The older format, with a generated manifest, whose digest is not known elsewhere. A context manager."""

    def __init__(self, archive: TarArchive, reference: str | None = None) -> None:
        """Take ownership of the archive, which is closed with this source."""
        self._archive = archive
        self._archive_index = archive.archive_index
        self._reference = reference
        self._manifest = b""
        self._name_by_digest: dict[Digest, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; reading from its open streams fails afterwards."""
        self._archive.close()

    def root_descriptor(self) -> Descriptor:
        """Return the descriptor of the generated manifest.

        The config's digest is its hash; uncompressed layers have their diff_ids as digests.
        """
        if not self._manifest:
            images = parse_docker_manifest(read_member(self._archive, MANIFEST_NAME, LIMITS.document_bytes))
            self._manifest = json.dumps(self._make_manifest(choose_image(images, self._reference))).encode()
        digest = Digest.from_bytes(self._manifest)
        return Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(self._manifest))

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the generated manifest, or the member that has the blob."""
        if (
            self._manifest
            and Digest.from_bytes(self._manifest, descriptor.digest.algorithm) == descriptor.digest
        ):
            return io.BytesIO(self._manifest)
        if descriptor.digest not in self._name_by_digest:
            raise missing_blob_error(descriptor, str(descriptor.digest), self._archive_index.description)
        return self._archive.open(self._name_by_digest[descriptor.digest])

    def read_order(self, descriptor: Descriptor) -> int:
        """Return the blob's offset: compressed archives are read fastest in this order."""
        return self._archive_index.get_offset(self._name_by_digest.get(descriptor.digest, ""))

    def _make_manifest(self, image: SavedImage) -> dict[str, Any]:
        name = _resolve_link(self._archive_index, image.config)
        data = read_member(self._archive, name, LIMITS.document_bytes)
        digest = Digest.from_bytes(data)
        match = _CONFIG_NAME.fullmatch(image.config)
        if match is not None and match[1] != digest.hex:
            raise MalformedImage(f"{image.config} has other content: its digest is {digest}")
        self._name_by_digest[digest] = name
        diff_ids = parse_config(data).diff_ids
        if len(diff_ids) != len(image.layers):
            raise MalformedImage(
                f"{MANIFEST_NAME} lists {len(image.layers)} layers, the config {len(diff_ids)} diff_ids"
            )
        pairs = zip(image.layers, diff_ids, strict=True)
        layers = [
            self._make_layer(layer, diff_id, image.layer_sources.get(str(diff_id)))
            for layer, diff_id in pairs
        ]
        config = _make_descriptor(OCI_CONFIG, digest, len(data))
        return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}

    def _make_layer(self, layer: str, diff_id: Digest, source: LayerSource | None) -> dict[str, Any]:
        """Return a layer's descriptor; a compressed layer is hashed, as its diff_id is of other bytes."""
        is_saved = layer in self._archive_index.files or layer in self._archive_index.links
        if not is_saved and source is not None:  # docker save leaves out foreign layers (Windows)
            return _make_descriptor(source.media_type, Digest(source.digest), source.size)
        name = _resolve_link(self._archive_index, layer)
        compression = detect_compression(self._archive.read_head(name))
        digest = diff_id if compression == PLAIN else self._hash_member(name, diff_id.algorithm)
        if (
            self._name_by_digest.setdefault(digest, name) != name
            and self._hash_member(name, digest.algorithm) != digest
        ):
            raise MalformedImage(
                f"{layer} has other content than {self._name_by_digest[digest]}, but both should be {digest}"
            )
        return _make_descriptor(
            _LAYER_TYPE_BY_COMPRESSION[compression], digest, self._archive_index.files[name].size
        )

    def _hash_member(self, name: str, algorithm: str) -> Digest:
        hasher = hashlib.new(algorithm)
        with self._archive.open(name) as stream:
            while chunk := stream.read(1 << 20):
                hasher.update(chunk)
        return Digest(f"{algorithm}:{hasher.hexdigest()}")


def _make_descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _resolve_link(archive_index: ArchiveIndex, name: str) -> str:
    """Return the file that a name refers to: layers that images share are saved as symbolic links."""
    current = name
    for _ in range(_MAX_LINKS):
        if current in archive_index.files:
            return current
        if current not in archive_index.links:
            break
        current = posixpath.normpath(posixpath.join(posixpath.dirname(current), archive_index.links[current]))
    if name in archive_index.links:
        target = archive_index.links[name]
        raise MalformedImage(f"{name} is a link to {target!r}, which is not a file in the archive")
    raise MalformedImage(f"{name} is missing from {archive_index.description}")
