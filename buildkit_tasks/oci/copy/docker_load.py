"""Pack an image as the archive that `docker load` takes.

Without a name unless one is asked for: then loading it moves nobody's tag. For a classic image store,
which holds one platform for each image, one manifest is packed together with docker's own
``manifest.json``.
"""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from buildkit_tasks.oci.image import Source, open_verified, read_manifest
from buildkit_tasks.oci.model import IMAGE_NAME_ANNOTATION, OCI_INDEX, Descriptor
from buildkit_tasks.oci.transports.layout import iter_reachable, make_index_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["pack_image"]

_CHUNK_SIZE = 1 << 20
_BLOCK_SIZE = tarfile.BLOCKSIZE


def pack_image(
    source: Source, root: Descriptor, *, classic: bool = False, names: Sequence[str] = ()
) -> Iterator[bytes]:
    """The archive, piece by piece; digests are checked while the blobs go by.

    ``names`` are what `docker load` will call the image.

    Raises :class:`MalformedImage` when a blob is not what its digest says: the archive then ends
    in the middle, which the engine refuses.
    """
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": _make_index_entries(root, names)}
    yield from _pack_file("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    yield from _pack_file("index.json", json.dumps(index).encode())
    if classic:
        yield from _pack_file("manifest.json", json.dumps([_make_docker_manifest(source, root)]).encode())
    for descriptor in {each.digest: each for each in iter_reachable(source, root)}.values():
        yield _make_tar_header(_blob_path(descriptor), descriptor.size)
        with open_verified(source, descriptor) as stream:
            while chunk := stream.read(_CHUNK_SIZE):
                yield chunk
        yield bytes(-descriptor.size % _BLOCK_SIZE)
    yield bytes(2 * _BLOCK_SIZE)


def _make_index_entries(root: Descriptor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The image once for each of its names, as containerd reads them; without a name once."""
    entry = make_index_entry(root)
    return [{**entry, "annotations": {IMAGE_NAME_ANNOTATION: name}} for name in names] or [entry]


def _make_docker_manifest(source: Source, root: Descriptor) -> dict[str, Any]:
    manifest = read_manifest(source, root)
    layers = [_blob_path(layer) for layer in manifest.layers]
    return {"Config": _blob_path(manifest.config), "RepoTags": None, "Layers": layers}


def _blob_path(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


def _pack_file(name: str, data: bytes) -> Iterator[bytes]:
    yield _make_tar_header(name, len(data))
    yield data
    yield bytes(-len(data) % _BLOCK_SIZE)


def _make_tar_header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)
