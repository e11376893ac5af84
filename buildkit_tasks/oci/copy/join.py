"""Images of one platform each, in files, read as one image of several."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.copy.docker_load import pack
from buildkit_tasks.oci.copy.index import merged, read_part
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.oci.transports.layout import reachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = ["JoinedSource", "join_archives", "open_joined"]


class JoinedSource:
    """The index of several parts, and behind it the parts' own blobs."""

    def __init__(self, index: bytes, owners: Mapping[Digest, Source]) -> None:
        self._index = index
        self._root = Descriptor(media_type=OCI_INDEX, digest=Digest.of(index), size=len(index))
        self._owners = owners

    def root(self) -> Descriptor:
        """The index."""
        return self._root

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """A blob of whichever part has it."""
        if descriptor.digest == self._root.digest:
            return io.BytesIO(self._index)
        owner = self._owners.get(descriptor.digest)
        if owner is None:
            raise MalformedImage(f"{descriptor.digest} is in none of the parts")
        return owner.open(descriptor)


@contextlib.contextmanager
def open_joined(archives: Mapping[Platform, Path]) -> Iterator[JoinedSource]:
    """The OCI archives of one platform each as one image.

    Raises :class:`CheckFailed` for an archive of another platform, :class:`MalformedImage` for one that
    is not sound.
    """
    with contextlib.ExitStack() as stack:
        parts, owners = [], {}
        for platform, archive in archives.items():
            source = stack.enter_context(open_image(f"oci-archive:{archive}"))
            parts.append(read_part(source, f"the part for {platform}"))
            owners.update({each.digest: source for each in reachable(source, source.root())})
        yield JoinedSource(merged(parts, tuple(archives)), owners)


def join_archives(archives: Mapping[Platform, Path], names: Sequence[str], place: Path) -> Digest:
    """Write one OCI archive of several; gives the digest of its index.

    ``names`` are what the image is called there, as BuildKit notes it.
    """
    with open_joined(archives) as source, place.open("wb") as file:
        for piece in pack(source, source.root(), names=names):
            file.write(piece)
        return source.root().digest
