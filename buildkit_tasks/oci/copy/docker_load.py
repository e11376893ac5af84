"""Pack an image as the archive that `docker load` takes.

Without a name unless one is asked for: then loading it moves nobody's tag. For a classic image store,
which holds one platform for each image, one manifest is packed together with docker's own
``manifest.json``.
"""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from buildkit_tasks.oci.image import Source, manifest_of, open_verified
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor
from buildkit_tasks.oci.transports.layout import entry_of, reachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["pack"]

_CHUNK = 1 << 20
_NAME = "io.containerd.image.name"
_BLOCK = tarfile.BLOCKSIZE


def pack(
    source: Source, root: Descriptor, *, classic: bool = False, names: Sequence[str] = ()
) -> Iterator[bytes]:
    """The archive, piece by piece; digests are checked while the blobs go by.

    ``names`` are what `docker load` will call the image.

    Raises :class:`MalformedImage` when a blob is not what its digest says: the archive then ends
    in the middle, which the engine refuses.
    """
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": _entries(root, names)}
    yield from _file("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    yield from _file("index.json", json.dumps(index).encode())
    if classic:
        yield from _file("manifest.json", json.dumps([_docker_manifest(source, root)]).encode())
    for descriptor in {each.digest: each for each in reachable(source, root)}.values():
        yield _header(_blob(descriptor), descriptor.size)
        with open_verified(source, descriptor) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
        yield bytes(-descriptor.size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _entries(root: Descriptor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The image once for each of its names, as containerd reads them; without a name once."""
    entry = entry_of(root)
    return [{**entry, "annotations": {_NAME: name}} for name in names] or [entry]


def _docker_manifest(source: Source, root: Descriptor) -> dict[str, Any]:
    manifest = manifest_of(source, root)
    layers = [_blob(layer) for layer in manifest.layers]
    return {"Config": _blob(manifest.config), "RepoTags": None, "Layers": layers}


def _blob(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"


def _file(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data
    yield bytes(-len(data) % _BLOCK)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)
