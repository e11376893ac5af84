"""An OCI image layout in a tar file, as ``docker buildx build -o type=oci`` writes it.

The headers are read once; blobs are then read in place, several at a time if need be. Nothing is
unpacked.
"""

from __future__ import annotations

import io
import os
import re
import stat
from typing import TYPE_CHECKING, BinaryIO, Self

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layout import check_layout_version, choose_root
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import Descriptor, Digest
from buildkit_tasks.oci.tar import REGULAR, TarReader

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Archive"]

_MEMBER = re.compile(r"index\.json|oci-layout|manifest\.json|blobs/sha(?:256/[0-9a-f]{64}|512/[0-9a-f]{128})")
_MAX_MEMBERS = 100_000
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5": "unzstd"}


class Archive:
    """The image in an OCI archive; ``name`` chooses one if there are several. A context manager."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._name = name
        self._index = b""
        self._number = _open(path)
        try:
            self._members = self._scan()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; streams that are still open fail from then on."""
        os.close(self._number)

    def root(self) -> Descriptor:
        """The image that ``index.json`` holds; see :func:`~buildkit_tasks.oci.layout.choose_root`."""
        if "index.json" not in self._members:
            self._refuse()
        check_layout_version(self._read("oci-layout", 4096))
        self._index = self._read("index.json", LIMITS.document)
        return choose_root(self._index, self._name)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob of that digest, or ``index.json`` where that is the image's index."""
        digest = descriptor.digest
        name = f"blobs/{digest.algorithm}/{digest.hex}"
        if name not in self._members and Digest.of(self._index, digest.algorithm) == digest:
            name = "index.json"
        return self._member(name)

    def _member(self, name: str) -> BinaryIO:
        if name not in self._members:
            raise MalformedImage(f"{name} is missing from {self._path}")
        return io.BufferedReader(_Window(self._number, *self._members[name]), 1 << 16)

    def _read(self, name: str, limit: int) -> bytes:
        data = self._member(name).read(limit + 1)
        if len(data) > limit:
            raise LimitExceeded(f"{name} in {self._path} has more than {limit} bytes")
        return data

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Offset and size of every member that belongs to a layout."""
        if os.pread(self._number, 2, 0) in _COMPRESSED:
            tool = _COMPRESSED[os.pread(self._number, 2, 0)]
            raise UsageError(f"{self._path} is compressed", hint=f"{tool} it, then name the .tar file")
        members: dict[str, tuple[int, int]] = {}
        with io.BufferedReader(_Window(self._number, 0, os.fstat(self._number).st_size)) as stream:
            for entry in TarReader(stream):
                name = entry.name.removeprefix("./")
                if entry.type == REGULAR and _MEMBER.fullmatch(name):
                    self._add(members, name, (entry.offset, entry.size))
        return members

    def _add(self, members: dict[str, tuple[int, int]], name: str, span: tuple[int, int]) -> None:
        """Two members of one name would be two images: one for each way of reading."""
        if name in members:
            raise MalformedImage(f"{self._path} holds {name} twice")
        if len(members) >= _MAX_MEMBERS:
            raise LimitExceeded(f"{self._path} holds more than {_MAX_MEMBERS} blobs")
        members[name] = span

    def _refuse(self) -> None:
        if "manifest.json" in self._members:
            raise UsageError(
                f"{self._path} is a `docker save` archive, which verify-arch cannot read yet",
                hint="build one that can be read with: inv build-multiarch -o type=oci,dest=dist/image.tar",
            )
        raise UsageError(f"{self._path} is no OCI archive: it has no index.json")


def _open(path: Path) -> int:
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UsageError(f"{path} is no regular file")
    return number


class _Window(io.RawIOBase):
    """A span of a file with a position of its own; the file is not closed with it."""

    def __init__(self, number: int, offset: int, size: int) -> None:
        super().__init__()
        self._number = number
        self._start = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = max(min(len(buffer), self._size - self._at), 0)
        data = os.pread(self._number, wanted, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
