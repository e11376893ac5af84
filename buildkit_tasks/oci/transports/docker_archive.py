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
from buildkit_tasks.oci.layers.decompress import GZIP, PLAIN, ZSTD, compression_of
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
    MANIFEST,
    Origin,
    Saved,
    choices,
    chosen_image,
    chosen_number,
    saved_images,
)
from buildkit_tasks.oci.transports.layout import choose_root, entry_names, not_here
from buildkit_tasks.oci.transports.oci_archive import ArchivedLayout, open_members
from buildkit_tasks.oci.transports.tar_members import Members, Table, read_member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DockerArchive", "SavedLayout", "image_in", "open_docker_archive"]

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_LAYERS = {PLAIN: _LAYER, GZIP: f"{_LAYER}+gzip", ZSTD: f"{_LAYER}+zstd"}
# The names that say what a config's bytes hash to: docker's old and new ones, and crane's.
_HASHED = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?", re.ASCII)
_MAX_LINKS = 8


def open_docker_archive(path: Path, reference: str | None = None) -> SavedLayout | DockerArchive:
    """The image in a ``docker save`` archive; ``reference`` (a name, or ``@N``) chooses among several."""
    members = open_members(path)
    try:
        return image_in(members, reference)
    except BaseException:
        members.close()
        raise


def image_in(members: Members, reference: str | None = None) -> SavedLayout | DockerArchive:
    """The image in these members, which are closed with it.

    Raises :class:`UsageError` if they are no ``docker save`` archive's.
    """
    table = members.table
    if "index.json" in table.files:
        return SavedLayout(members, reference)
    if MANIFEST in table.files:
        return DockerArchive(members, reference)
    cause = f"it has neither {MANIFEST} nor index.json"
    if "repositories" in table.files:
        cause = f"it has no {MANIFEST}, as before docker 1.10"
    raise UsageError(f"{table.what} is no `docker save` archive: {cause}")


class SavedLayout(ArchivedLayout):
    """The newer form: a layout, whose ``manifest.json`` has to mean the same images."""

    def __init__(self, members: Members, reference: str | None = None) -> None:
        super().__init__(members, functools.partial(_choose_entry, reference=reference))
        self._agreed = MANIFEST not in members.table.files

    def root(self) -> Descriptor:
        """The chosen image. Raises :class:`MalformedImage` if ``manifest.json`` names others.

        Engines differ in which of the two they load from: an archive whose two halves differ is
        one image for a checker and another for an engine.
        """
        found = super().root()
        if not self._agreed:
            self._compare()
            self._agreed = True
        return found

    def _compare(self) -> None:
        known: dict[str, tuple[Digest, ...]] = {}
        try:
            for manifest in self._manifests():
                known[manifest.config.digest.hex] = tuple(layer.digest for layer in manifest.layers)
        except (MalformedImage, LimitExceeded):
            return  # what is wrong with a document is said where it is read for its own sake
        for image in saved_images(read_member(self._members, MANIFEST, LIMITS.document)):
            match = _HASHED.fullmatch(image.config)
            if match is None or match[1] not in known:
                raise MalformedImage(
                    f"{MANIFEST} names the config {image.config}, which no image of index.json has"
                )
            stated = [f"blobs/{digest.algorithm}/{digest.hex}" for digest in known[match[1]]]
            if all(layer.startswith("blobs/") for layer in image.layers) and list(image.layers) != stated:
                raise MalformedImage(f"{MANIFEST} gives {image.config} other layers than index.json")

    def _manifests(self) -> Iterator[Manifest]:
        """Every manifest that is here, of every image in the layout; each document is read once."""
        todo = list(parse_index(self._index).manifests)
        seen: set[Digest] = set()
        while todo and len(seen) < LIMITS.manifests:
            here = todo.pop()
            if here.digest in seen or not self.holds(here):
                continue
            seen.add(here.digest)
            if here.media_type in INDEX_TYPES:
                todo += parse_index(read_blob(self, here, LIMITS.document), here.media_type).manifests
            elif here.media_type in MANIFEST_TYPES:
                yield parse_manifest(read_blob(self, here, LIMITS.document), here.media_type)


def _choose_entry(data: bytes, reference: str | None) -> Descriptor:
    """The entry of an ``index.json`` that a reference means."""
    entries = list({entry.digest: entry for entry in parse_index(data).manifests}.values())
    names = [sorted(entry_names(entry)) for entry in entries]
    if reference is not None:
        return entries[chosen_number(names, reference)]
    try:
        return choose_root(data, None)
    except UsageError as error:
        raise UsageError(error.message, hint=choices(names)) from None


class DockerArchive:
    """The older form. The manifest is made here: its digest is no one else's. A context manager."""

    synthesised = True

    def __init__(self, members: Members, reference: str | None = None) -> None:
        """Take over the archive: it is closed with this."""
        self._members = members
        self._table = members.table
        self._reference = reference
        self._manifest = b""
        self._names: dict[Digest, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; streams that are still open fail from then on."""
        self._members.close()

    def root(self) -> Descriptor:
        """The chosen image's manifest: its config by its hash, its plain layers by their diff_ids."""
        if not self._manifest:
            images = saved_images(read_member(self._members, MANIFEST, LIMITS.document))
            self._manifest = json.dumps(self._made_for(chosen_image(images, self._reference))).encode()
        digest = Digest.of(self._manifest)
        return Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(self._manifest))

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The made manifest, or the file that holds the blob."""
        if self._manifest and Digest.of(self._manifest, descriptor.digest.algorithm) == descriptor.digest:
            return io.BytesIO(self._manifest)
        if descriptor.digest not in self._names:
            raise not_here(descriptor, str(descriptor.digest), self._table.what)
        return self._members.open(self._names[descriptor.digest])

    def position(self, descriptor: Descriptor) -> int:
        """Where the blob lies: a compressed archive is read fastest in this order."""
        member = self._table.files.get(self._names.get(descriptor.digest, ""))
        return member.offset if member else 0

    def _made_for(self, image: Saved) -> dict[str, Any]:
        name = _resolve(self._table, image.config)
        data = read_member(self._members, name, LIMITS.document)
        match = _HASHED.fullmatch(image.config)
        digest = Digest(f"sha256:{match[1]}") if match else Digest.of(data)
        if digest != Digest.of(data):
            raise MalformedImage(f"{image.config} holds other bytes: they hash to {Digest.of(data)}")
        self._names[digest] = name
        diff_ids = parse_config(data).diff_ids
        if len(diff_ids) != len(image.layers):
            raise MalformedImage(
                f"{MANIFEST} lists {len(image.layers)} layers, the config {len(diff_ids)} diff_ids"
            )
        pairs = zip(image.layers, diff_ids, strict=True)
        layers = [self._layer(layer, diff_id, image.sources.get(str(diff_id))) for layer, diff_id in pairs]
        config = _entry(OCI_CONFIG, digest, len(data))
        return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}

    def _layer(self, layer: str, diff_id: Digest, origin: Origin | None) -> dict[str, Any]:
        """A layer's descriptor. What is compressed is hashed, since its diff_id says nothing of it."""
        here = layer in self._table.files or layer in self._table.links
        if not here and origin is not None:  # Windows' foreign layers are not saved
            return _entry(origin.media_type, Digest(origin.digest), origin.size)
        name = _resolve(self._table, layer)
        form = compression_of(self._members.head(name))
        digest = diff_id if form == PLAIN else self._hashed(name, diff_id.algorithm)
        if self._names.setdefault(digest, name) != name and self._hashed(name, digest.algorithm) != digest:
            raise MalformedImage(f"{layer} holds other bytes than {self._names[digest]}; both are {digest}")
        return _entry(_LAYERS[form], digest, self._table.files[name].size)

    def _hashed(self, name: str, algorithm: str) -> Digest:
        with self._members.open(name) as stream:
            return Digest(f"{algorithm}:{_hash(stream, algorithm)}")


def _hash(stream: BinaryIO, algorithm: str) -> str:
    found = hashlib.new(algorithm)
    while data := stream.read(1 << 20):
        found.update(data)
    return found.hexdigest()


def _entry(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _resolve(table: Table, name: str) -> str:
    """The file that a name leads to: layers that images share are links beside the first one."""
    here = name
    for _ in range(_MAX_LINKS):
        if here in table.files:
            return here
        if here not in table.links:
            break
        here = posixpath.normpath(posixpath.join(posixpath.dirname(here), table.links[here]))
    if name in table.links:
        target = table.links[name]
        raise MalformedImage(f"{name} is a link to {target!r}, which leads to no file in the archive")
    raise MalformedImage(f"{name} is missing from {table.what}")
