"""An image in a Docker engine, read from the stream of its ``docker save``; nothing touches the disk.

The engine itself is a service, floors above: whoever opens an image here brings the function that
asks the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Self

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import MANIFEST_TYPES, parse_manifest
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports.docker_archive import DockerLayoutArchive, open_saved_image
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive

if TYPE_CHECKING:
    from buildkit_tasks.oci.model import Descriptor

__all__ = ["DaemonSource", "ImageExporter"]

ImageExporter = Callable[[str], BinaryIO]


class DaemonSource:
    """The image that an engine knows by ``reference``. A context manager.

    ``export`` opens a fresh stream of the engine's save archive each time it is called.
    """

    def __init__(self, reference: str, export: ImageExporter) -> None:
        archive = StreamedArchive(lambda: export(reference), f"docker-daemon:{reference}")
        self._image = open_saved_image(archive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream."""
        self._image.close()

    def root_descriptor(self) -> Descriptor:
        """The image as the engine keeps it: a classic store keeps one platform's manifest."""
        return self._image.root_descriptor()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob of that digest."""
        return self._image.open(descriptor)

    def read_order(self, descriptor: Descriptor) -> int:
        """Where the blob lies in the stream, which is read fastest in this order."""
        return self._image.read_order(descriptor)

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Whether the engine has not all that this entry of its index needs.

        A containerd store keeps the whole index of an image of which one platform was pulled. What
        is there and malformed is not lacking.
        """
        if not isinstance(self._image, DockerLayoutArchive):
            return False
        if not self._image.has_blob(descriptor):
            return True
        if descriptor.media_type not in MANIFEST_TYPES:
            return False
        try:
            data = read_blob(self, descriptor, LIMITS.document_bytes)
            manifest = parse_manifest(data, descriptor.media_type)
        except (MalformedImage, LimitExceeded):
            return False
        return any(not self._image.has_blob(blob) for blob in (manifest.config, *manifest.layers))
