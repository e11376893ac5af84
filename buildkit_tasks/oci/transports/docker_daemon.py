"""The docker-daemon transport: an image of a Docker engine, read from the stream of ``docker save``.

Nothing is written to disk. This package does not know engines: the caller passes the function that
opens the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Self

from buildkit_tasks.oci.transports.docker_archive import DockerLayoutArchive, open_saved_image
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive

if TYPE_CHECKING:
    from buildkit_tasks.oci.model import Descriptor

__all__ = ["DaemonSource", "ImageExporter"]

ImageExporter = Callable[[str], BinaryIO]


class DaemonSource:
    """The image that an engine knows as ``reference``. A context manager.

    ``export`` opens a new stream of the image's ``docker save`` archive on each call.
    """

    def __init__(self, reference: str, export: ImageExporter) -> None:
        archive = StreamedArchive(lambda: export(reference), f"docker-daemon:{reference}")
        self._image = open_saved_image(archive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream."""
        self._image.close()

    def root_descriptor(self) -> Descriptor:
        """Return the image as the engine stores it; without containerd that is one platform's manifest."""
        return self._image.root_descriptor()

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the blob with that digest."""
        return self._image.open(descriptor)

    def read_order(self, descriptor: Descriptor) -> int:
        """Return the blob's offset in the stream, which is read fastest in this order."""
        return self._image.read_order(descriptor)

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Return True if the engine does not have the blob.

        A containerd image store keeps the whole index even if only one platform was pulled.
        """
        return isinstance(self._image, DockerLayoutArchive) and not self._image.has_blob(descriptor)
