"""Join archives of one platform each into one image."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.copy.docker_load import pack_image
from buildkit_tasks.oci.copy.index import merge_parts, read_part
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
from buildkit_tasks.oci.transports import open_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = ["join_archives", "open_joined_archives"]


class _JoinedSource:
    """An index, and the blobs of several sources."""

    def __init__(self, index: bytes, sources: Mapping[Digest, Source]) -> None:
        self._index = index
        self._root = Descriptor(media_type=OCI_INDEX, digest=Digest.from_bytes(index), size=len(index))
        self._sources = sources

    def root_descriptor(self) -> Descriptor:
        return self._root

    def open(self, descriptor: Descriptor) -> BinaryIO:
        if descriptor.digest == self._root.digest:
            return io.BytesIO(self._index)
        source = self._sources.get(descriptor.digest)
        if source is None:
            raise MalformedImage(f"{descriptor.digest} is in none of the parts")
        return source.open(descriptor)


@contextlib.contextmanager
def open_joined_archives(archives: Mapping[Platform, Path]) -> Iterator[Image]:
    """Open OCI archives of one platform each as one image.

    Raise :class:`CheckFailed` if the archives have other platforms, :class:`MalformedImage` if one is
    broken.
    """
    with contextlib.ExitStack() as stack:
        parts, sources = [], {}
        for platform, archive in archives.items():
            image = stack.enter_context(open_image(f"oci-archive:{archive}"))
            parts.append(read_part(image, f"the part for {platform}"))
            sources.update({descriptor.digest: image for descriptor in image.reachable()})
        yield Image(_JoinedSource(merge_parts(parts, tuple(archives)), sources))


def join_archives(archives: Mapping[Platform, Path], names: Sequence[str], path: Path) -> Digest:
    """Write one OCI archive of several to ``path``, in place; return the digest of its index.

    ``names`` are the image's names, which are written to ``index.json`` as BuildKit does.
    """
    with open_joined_archives(archives) as image, path.open("wb") as file:
        for chunk in pack_image(image, image.root, names=names):
            file.write(chunk)
        return image.root.digest
