"""The oci-archive transport: an OCI image layout in a tar file, the output of buildx with ``type=oci``.

An uncompressed file is read in place; a compressed one (``.tar.gz``, ``.tar.zst``) is streamed again for
members that are too large to cache. Nothing is unpacked.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, BinaryIO, Self

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.layers.decompress import PLAIN, detect_compression
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import Descriptor, Digest
from buildkit_tasks.oci.transports.layout import (
    MAX_VERSION_SIZE,
    check_layout_version,
    choose_root,
    missing_blob_error,
)
from buildkit_tasks.oci.transports.tar_files import check_tar_file
from buildkit_tasks.oci.transports.tar_members import (
    SeekableArchive,
    TarArchive,
    open_regular_file,
    read_member,
)
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ArchivedLayout", "OciArchive", "open_tar_archive"]


class ArchivedLayout:
    """The image that ``choose`` selects from an archive's ``index.json``. A context manager."""

    def __init__(self, archive: TarArchive, choose: Callable[[bytes], Descriptor]) -> None:
        """Take ownership of the archive, which is closed with this source."""
        self._archive = archive
        self._archive_index = archive.archive_index
        self._choose = choose
        self._index = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; reading from its open streams fails afterwards."""
        self._archive.close()

    def root_descriptor(self) -> Descriptor:
        """Return the image of ``index.json``; see :func:`.layout.choose_root`."""
        if "index.json" not in self._archive_index.files:
            self._reject_archive()
        check_layout_version(read_member(self._archive, "oci-layout", MAX_VERSION_SIZE))
        self._index = read_member(self._archive, "index.json", LIMITS.document_bytes)
        return self._choose(self._index)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the blob with that digest, or ``index.json`` if that is the image's index."""
        name = self._member_name(descriptor)
        if name not in self._archive_index.files:
            raise missing_blob_error(descriptor, name, self._archive_index.description)
        return self._archive.open(name)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return True if the archive has the blob; its content is not checked."""
        return self._member_name(descriptor) in self._archive_index.files

    def read_order(self, descriptor: Descriptor) -> int:
        """Return the blob's offset: compressed archives are read fastest in this order."""
        return self._archive_index.get_offset(self._member_name(descriptor))

    def _member_name(self, descriptor: Descriptor) -> str:
        digest = descriptor.digest
        if digest.blob_path not in self._archive_index.files and self._is_index(digest):
            return "index.json"
        return digest.blob_path

    def _is_index(self, digest: Digest) -> bool:
        return bool(self._index) and Digest.from_bytes(self._index, digest.algorithm) == digest

    def _reject_archive(self) -> None:
        description = self._archive_index.description
        if "manifest.json" in self._archive_index.files:
            hint = f"write it as docker-archive:{description}"
            raise UsageError(f"{description} is a `docker save` archive, not an OCI archive", hint=hint)
        raise UsageError(f"{description} is not an OCI archive: it has no index.json")


class OciArchive(ArchivedLayout):
    """The image in an OCI archive; ``name`` selects one of several."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(open_tar_archive(path), functools.partial(choose_root, name=name))


def open_tar_archive(path: Path) -> TarArchive:
    """Open a tar file, which may be compressed.

    Raises :class:`UsageError` if it is not a tar file or cannot be opened, :class:`MalformedImage` and
    :class:`LimitExceeded` for its content.
    """
    check_tar_file(path)
    fd = open_regular_file(path)
    if detect_compression(os.pread(fd, 4, 0)) != PLAIN:
        os.close(fd)
        return StreamedArchive(lambda: os.fdopen(open_regular_file(path), "rb", buffering=0), str(path))
    return SeekableArchive(fd, str(path))
