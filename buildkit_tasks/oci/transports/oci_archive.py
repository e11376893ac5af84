"""An OCI image layout in a tar file, as ``docker buildx build -o type=oci`` writes it.

A plain file is read in place; a compressed one (``.tar.gz``, ``.tar.zst``) is walked through
again for what does not fit into memory. Nothing is unpacked.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, BinaryIO, Self

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.layers.decompress import PLAIN, compression_of
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import Descriptor, Digest
from buildkit_tasks.oci.transports.layout import check_layout_version, choose_root, not_here
from buildkit_tasks.oci.transports.tar_members import InPlace, Members, open_file, read_member
from buildkit_tasks.oci.transports.tar_stream import Rewindable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Archive", "ArchivedLayout", "open_members"]

_VERSION_LIMIT = 4096


class ArchivedLayout:
    """The image that ``choose`` finds in an archive's ``index.json``. A context manager."""

    def __init__(self, members: Members, choose: Callable[[bytes], Descriptor]) -> None:
        """Take over the archive: it is closed with this."""
        self._members = members
        self._table = members.table
        self._choose = choose
        self._index = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; streams that are still open fail from then on."""
        self._members.close()

    def root(self) -> Descriptor:
        """The image that ``index.json`` holds; see :func:`.layout.choose_root`."""
        if "index.json" not in self._table.files:
            self._refuse()
        check_layout_version(read_member(self._members, "oci-layout", _VERSION_LIMIT))
        self._index = read_member(self._members, "index.json", LIMITS.document)
        return self._choose(self._index)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob of that digest, or ``index.json`` where that is the image's index."""
        name = self._name(descriptor)
        if name not in self._table.files:
            raise not_here(descriptor, name, self._table.what)
        return self._members.open(name)

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether there is a blob of that digest, be it right or wrong."""
        return self._name(descriptor) in self._table.files

    def position(self, descriptor: Descriptor) -> int:
        """Where the blob lies: a compressed archive is read fastest in this order."""
        member = self._table.files.get(self._name(descriptor))
        return member.offset if member else 0

    def _name(self, descriptor: Descriptor) -> str:
        digest = descriptor.digest
        name = f"blobs/{digest.algorithm}/{digest.hex}"
        if name not in self._table.files and self._is_index(digest):
            return "index.json"
        return name

    def _is_index(self, digest: Digest) -> bool:
        return bool(self._index) and Digest.of(self._index, digest.algorithm) == digest

    def _refuse(self) -> None:
        what = self._table.what
        if "manifest.json" in self._table.files:
            hint = f"write it as docker-archive:{what}"
            raise UsageError(f"{what} is a `docker save` archive, no OCI archive", hint=hint)
        raise UsageError(f"{what} is no OCI archive: it has no index.json")


class Archive(ArchivedLayout):
    """The image in an OCI archive; ``name`` chooses one if there are several."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(open_members(path), functools.partial(choose_root, name=name))


def open_members(path: Path) -> Members:
    """The members of a tar file, which may be compressed.

    Raises :class:`UsageError` for what cannot be read or is no regular file.
    """
    number = open_file(path)
    if compression_of(os.pread(number, 4, 0)) != PLAIN:
        os.close(number)
        return Rewindable(lambda: os.fdopen(open_file(path), "rb", buffering=0), str(path))
    return InPlace(number, str(path))
