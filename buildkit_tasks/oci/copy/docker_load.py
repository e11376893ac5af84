"""Pack an image as an archive for `docker load`.

Unless names are given the image has none, so that loading it moves no tag. A classic image store, which
holds one platform of an image, needs one manifest and Docker's ``manifest.json``.
"""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import IMAGE_NAME_ANNOTATION, OCI_INDEX, Descriptor
from buildkit_tasks.oci.source import open_verified
from buildkit_tasks.oci.transports.layout import make_index_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.oci.source import Source

__all__ = ["pack_image"]

_CHUNK_SIZE = 1 << 20
_BLOCK_SIZE = tarfile.BLOCKSIZE


def pack_image(
    source: Source, root: Descriptor, *, classic: bool = False, names: Sequence[str] = ()
) -> Iterator[bytes]:
    """Yield the archive of ``root`` and all that it reaches, in pieces.

    `docker load` gives the image the ``names``. Raise :class:`MalformedImage` when a blob's digest does
    not match; the archive then ends early, which the engine rejects.
    """
    image = Image.wrap(source)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": _make_index_entries(root, names)}
    yield from _pack_json("oci-layout", {"imageLayoutVersion": "1.0.0"})
    yield from _pack_json("index.json", index)
    if classic:
        yield from _pack_json("manifest.json", [_make_docker_manifest(image, root)])
    for descriptor in {each.digest: each for each in image.reachable(root)}.values():
        yield _make_tar_header(descriptor.digest.blob_path, descriptor.size)
        with open_verified(image, descriptor) as stream:
            while chunk := stream.read(_CHUNK_SIZE):
                yield chunk
        yield bytes(-descriptor.size % _BLOCK_SIZE)
    yield bytes(2 * _BLOCK_SIZE)


def _make_index_entries(root: Descriptor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return an entry for each name, from which containerd reads it, or one without a name."""
    entry = make_index_entry(root)
    return [{**entry, "annotations": {IMAGE_NAME_ANNOTATION: name}} for name in names] or [entry]


def _make_docker_manifest(image: Image, root: Descriptor) -> dict[str, Any]:
    config, *layers = (blob.digest.blob_path for blob in image.blobs(root))
    return {"Config": config, "RepoTags": None, "Layers": layers}


def _pack_json(name: str, document: Any) -> Iterator[bytes]:
    data = json.dumps(document).encode()
    yield _make_tar_header(name, len(data))
    yield data
    yield bytes(-len(data) % _BLOCK_SIZE)


def _make_tar_header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)
