"""An OCI image layout in a tar file, as ``docker buildx build -o type=oci`` writes it.

A plain file is read in place; a compressed one (``.tar.gz``, ``.tar.zst``) is walked through
again for what does not fit into memory. Nothing is unpacked.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, BinaryIO, Self

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.layers.decompress import PLAIN, detect_compression
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import Descriptor, Digest
from buildkit_tasks.oci.transports.layout import check_layout_version, choose_root, missing_blob_error
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

_MAX_VERSION_SIZE = 4096


class ArchivedLayout:
    """The image that ``choose`` finds in an archive's ``index.json``. A context manager."""

    def __init__(self, archive: TarArchive, choose: Callable[[bytes], Descriptor]) -> None:
        """Take over the archive: it is closed with this."""
        self._archive = archive
        self._archive_index = archive.archive_index
        self._choose = choose
        self._index = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; streams that are still open fail from then on."""
        self._archive.close()

    def root_descriptor(self) -> Descriptor:
        """The image that ``index.json`` holds; see :func:`.layout.choose_root`."""
        if "index.json" not in self._archive_index.files:
            self._reject_archive()
        check_layout_version(read_member(self._archive, "oci-layout", _MAX_VERSION_SIZE))
        self._index = read_member(self._archive, "index.json", LIMITS.document_bytes)
        return self._choose(self._index)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob of that digest, or ``index.json`` where that is the image's index."""
        name = self._member_name(descriptor)
        if name not in self._archive_index.files:
            raise missing_blob_error(descriptor, name, self._archive_index.description)
        return self._archive.open(name)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether there is a blob of that digest, be it right or wrong."""
        return self._member_name(descriptor) in self._archive_index.files

    def read_order(self, descriptor: Descriptor) -> int:
        """Where the blob lies: a compressed archive is read fastest in this order."""
        member = self._archive_index.files.get(self._member_name(descriptor))
        return member.offset if member else 0

    def _member_name(self, descriptor: Descriptor) -> str:
        digest = descriptor.digest
        name = f"blobs/{digest.algorithm}/{digest.hex}"
        if name not in self._archive_index.files and self._is_index(digest):
            return "index.json"
        return name

    def _is_index(self, digest: Digest) -> bool:
        return bool(self._index) and Digest.from_bytes(self._index, digest.algorithm) == digest

    def _reject_archive(self) -> None:
        description = self._archive_index.description
        if "manifest.json" in self._archive_index.files:
            hint = f"write it as docker-archive:{description}"
            raise UsageError(f"{description} is a `docker save` archive, no OCI archive", hint=hint)
        raise UsageError(f"{description} is no OCI archive: it has no index.json")


class OciArchive(ArchivedLayout):
    """The image in an OCI archive; ``name`` chooses one if there are several."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(open_tar_archive(path), functools.partial(choose_root, name=name))


def open_tar_archive(path: Path) -> TarArchive:
    """The members of a tar file, which may be compressed.

    Raises :class:`UsageError` for what cannot be read or is no regular file.
    """
    fd = open_regular_file(path)
    if detect_compression(os.pread(fd, 4, 0)) != PLAIN:
        os.close(fd)
        return StreamedArchive(lambda: os.fdopen(open_regular_file(path), "rb", buffering=0), str(path))
    return SeekableArchive(fd, str(path))
