"""Images of one platform each, in files, read as one image of several."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.copy.docker_load import pack_image
from buildkit_tasks.oci.copy.index import merge_parts, read_part
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.oci.transports.layout import iter_reachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = ["JoinedSource", "join_archives", "open_joined_archives"]


class JoinedSource:
    """The index of several parts, and behind it the parts' own blobs."""

    def __init__(self, index: bytes, sources: Mapping[Digest, Source]) -> None:
        self._index = index
        self._root = Descriptor(media_type=OCI_INDEX, digest=Digest.from_bytes(index), size=len(index))
        self._sources = sources

    def root_descriptor(self) -> Descriptor:
        """The index."""
        return self._root

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """A blob of whichever part has it."""
        if descriptor.digest == self._root.digest:
            return io.BytesIO(self._index)
        source = self._sources.get(descriptor.digest)
        if source is None:
            raise MalformedImage(f"{descriptor.digest} is in none of the parts")
        return source.open(descriptor)


@contextlib.contextmanager
def open_joined_archives(archives: Mapping[Platform, Path]) -> Iterator[JoinedSource]:
    """The OCI archives of one platform each as one image.

    Raises :class:`CheckFailed` for an archive of another platform, :class:`MalformedImage` for one that
    is not sound.
    """
    with contextlib.ExitStack() as stack:
        parts, sources = [], {}
        for platform, archive in archives.items():
            source = stack.enter_context(open_image(f"oci-archive:{archive}"))
            parts.append(read_part(source, f"the part for {platform}"))
            sources.update({each.digest: source for each in iter_reachable(source, source.root_descriptor())})
        yield JoinedSource(merge_parts(parts, tuple(archives)), sources)


def join_archives(archives: Mapping[Platform, Path], names: Sequence[str], path: Path) -> Digest:
    """Write one OCI archive of several; gives the digest of its index.

    ``names`` are what the image is called there, as BuildKit notes it.
    """
    with open_joined_archives(archives) as source, path.open("wb") as file:
        for chunk in pack_image(source, source.root_descriptor(), names=names):
            file.write(chunk)
        return source.root_descriptor().digest
