"""What ``docker save`` writes, in all its forms, compressed or not.

Since docker 25 the archive is an OCI layout with a ``manifest.json`` beside its ``index.json``: the
layout is read, as its digests prove more. Older ones, and those of skopeo, podman and others, have
``manifest.json`` alone (moby, ``image/spec/v1.2.md``): one manifest is made for each image in it.
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
from buildkit_tasks.oci.layers.decompress import GZIP, PLAIN, ZSTD, detect_compression
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from buildkit_tasks.oci.source import read_blob
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
# The names that say what a config's bytes hash to: docker's old and new ones, and crane's.
_CONFIG_NAME = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?", re.ASCII)
_MAX_LINKS = 8


def open_docker_archive(path: Path, reference: str | None = None) -> DockerLayoutArchive | DockerArchive:
    """The image in a ``docker save`` archive; ``reference`` (a name, or ``@N``) chooses among several."""
    archive = open_tar_archive(path)
    try:
        return open_saved_image(archive, reference)
    except BaseException:
        archive.close()
        raise


def open_saved_image(
    archive: TarArchive, reference: str | None = None
) -> DockerLayoutArchive | DockerArchive:
    """The image in these members, which are closed with it.

    Raises :class:`UsageError` if they are no ``docker save`` archive's.
    """
    archive_index = archive.archive_index
    if "index.json" in archive_index.files:
        return DockerLayoutArchive(archive, reference)
    if MANIFEST_NAME in archive_index.files:
        return DockerArchive(archive, reference)
    cause = f"it has neither {MANIFEST_NAME} nor index.json"
    if "repositories" in archive_index.files:
        cause = f"it has no {MANIFEST_NAME}, as before docker 1.10"
    raise UsageError(f"{archive_index.description} is no `docker save` archive: {cause}")


class DockerLayoutArchive(ArchivedLayout):
    """The newer form: a layout, whose ``manifest.json`` has to mean the same images."""

    def __init__(self, archive: TarArchive, reference: str | None = None) -> None:
        super().__init__(archive, functools.partial(_choose_entry, reference=reference))
        self._is_consistent = MANIFEST_NAME not in archive.archive_index.files

    def root_descriptor(self) -> Descriptor:
        """The chosen image. Raises :class:`MalformedImage` if ``manifest.json`` names others.

        Engines differ in which of the two they load from: an archive whose two halves differ is
        one image for a checker and another for an engine.
        """
        root = super().root_descriptor()
        if not self._is_consistent:
            self._check_docker_manifest()
            self._is_consistent = True
        return root

    def _check_docker_manifest(self) -> None:
        layers_by_config: dict[str, tuple[Digest, ...]] = {}
        try:
            for manifest in self._iter_manifests():
                layers_by_config[manifest.config.digest.hex] = tuple(
                    layer.digest for layer in manifest.layers
                )
        except (MalformedImage, LimitExceeded):
            return  # what is wrong with a document is said where it is read for its own sake
        for image in parse_docker_manifest(read_member(self._archive, MANIFEST_NAME, LIMITS.document_bytes)):
            match = _CONFIG_NAME.fullmatch(image.config)
            if match is None or match[1] not in layers_by_config:
                raise MalformedImage(
                    f"{MANIFEST_NAME} names the config {image.config}, which no image of index.json has"
                )
            stated = [f"blobs/{digest.algorithm}/{digest.hex}" for digest in layers_by_config[match[1]]]
            if all(layer.startswith("blobs/") for layer in image.layers) and list(image.layers) != stated:
                raise MalformedImage(f"{MANIFEST_NAME} gives {image.config} other layers than index.json")

    def _iter_manifests(self) -> Iterator[Manifest]:
        """Every manifest that is here, of every image in the layout; each document is read once."""
        pending = list(parse_index(self._index).manifests)
        seen: set[Digest] = set()
        while pending and len(seen) < LIMITS.manifests:
            descriptor = pending.pop()
            if descriptor.digest in seen or not self.has_blob(descriptor):
                continue
            seen.add(descriptor.digest)
            if descriptor.media_type in INDEX_TYPES:
                pending += parse_index(
                    read_blob(self, descriptor, LIMITS.document_bytes), descriptor.media_type
                ).manifests
            elif descriptor.media_type in MANIFEST_TYPES:
                yield parse_manifest(
                    read_blob(self, descriptor, LIMITS.document_bytes), descriptor.media_type
                )


def _choose_entry(data: bytes, reference: str | None) -> Descriptor:
    """The entry of an ``index.json`` that a reference means."""
    entries = list({entry.digest: entry for entry in parse_index(data).manifests}.values())
    names = [sorted(collect_entry_names(entry)) for entry in entries]
    if reference is not None:
        return entries[choose_number(names, reference)]
    try:
        return choose_root(data, None)
    except UsageError as error:
        raise UsageError(error.message, hint=describe_choices(names)) from None


class DockerArchive:
    """The older form. The manifest is made here: its digest is no one else's. A context manager."""

    is_synthesised = True

    def __init__(self, archive: TarArchive, reference: str | None = None) -> None:
        """Take over the archive: it is closed with this."""
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
        """Close the archive; streams that are still open fail from then on."""
        self._archive.close()

    def root_descriptor(self) -> Descriptor:
        """The chosen image's manifest: its config by its hash, its plain layers by their diff_ids."""
        if not self._manifest:
            images = parse_docker_manifest(read_member(self._archive, MANIFEST_NAME, LIMITS.document_bytes))
            self._manifest = json.dumps(self._make_manifest(choose_image(images, self._reference))).encode()
        digest = Digest.from_bytes(self._manifest)
        return Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(self._manifest))

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The made manifest, or the file that holds the blob."""
        if (
            self._manifest
            and Digest.from_bytes(self._manifest, descriptor.digest.algorithm) == descriptor.digest
        ):
            return io.BytesIO(self._manifest)
        if descriptor.digest not in self._name_by_digest:
            raise missing_blob_error(descriptor, str(descriptor.digest), self._archive_index.description)
        return self._archive.open(self._name_by_digest[descriptor.digest])

    def read_order(self, descriptor: Descriptor) -> int:
        """Where the blob lies: a compressed archive is read fastest in this order."""
        member = self._archive_index.files.get(self._name_by_digest.get(descriptor.digest, ""))
        return member.offset if member else 0

    def _make_manifest(self, image: SavedImage) -> dict[str, Any]:
        name = _resolve_link(self._archive_index, image.config)
        data = read_member(self._archive, name, LIMITS.document_bytes)
        match = _CONFIG_NAME.fullmatch(image.config)
        digest = Digest(f"sha256:{match[1]}") if match else Digest.from_bytes(data)
        if digest != Digest.from_bytes(data):
            raise MalformedImage(f"{image.config} holds other bytes: they hash to {Digest.from_bytes(data)}")
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
        """A layer's descriptor. What is compressed is hashed, since its diff_id says nothing of it."""
        is_saved = layer in self._archive_index.files or layer in self._archive_index.links
        if not is_saved and source is not None:  # Windows' foreign layers are not saved
            return _make_descriptor(source.media_type, Digest(source.digest), source.size)
        name = _resolve_link(self._archive_index, layer)
        compression = detect_compression(self._archive.read_head(name))
        digest = diff_id if compression == PLAIN else self._hash_member(name, diff_id.algorithm)
        if (
            self._name_by_digest.setdefault(digest, name) != name
            and self._hash_member(name, digest.algorithm) != digest
        ):
            raise MalformedImage(
                f"{layer} holds other bytes than {self._name_by_digest[digest]}; both are {digest}"
            )
        return _make_descriptor(
            _LAYER_TYPE_BY_COMPRESSION[compression], digest, self._archive_index.files[name].size
        )

    def _hash_member(self, name: str, algorithm: str) -> Digest:
        with self._archive.open(name) as stream:
            return Digest(f"{algorithm}:{_hash_stream(stream, algorithm)}")


def _hash_stream(stream: BinaryIO, algorithm: str) -> str:
    hasher = hashlib.new(algorithm)
    while data := stream.read(1 << 20):
        hasher.update(data)
    return hasher.hexdigest()


def _make_descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _resolve_link(archive_index: ArchiveIndex, name: str) -> str:
    """The file that a name leads to: layers that images share are links beside the first one."""
    current = name
    for _ in range(_MAX_LINKS):
        if current in archive_index.files:
            return current
        if current not in archive_index.links:
            break
        current = posixpath.normpath(posixpath.join(posixpath.dirname(current), archive_index.links[current]))
    if name in archive_index.links:
        target = archive_index.links[name]
        raise MalformedImage(f"{name} is a link to {target!r}, which leads to no file in the archive")
    raise MalformedImage(f"{name} is missing from {archive_index.description}")
