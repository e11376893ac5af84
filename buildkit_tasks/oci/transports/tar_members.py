"""Random access to the members of a tar archive that contains an image.

An uncompressed archive is read in place, several members at once if needed. Nothing is unpacked.
"""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.tar import REGULAR, SYMLINK, TarReader
from buildkit_tasks.oci.streams import FileSlice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buildkit_tasks.oci.layers.tar import TarEntry

__all__ = [
    "HEAD_SIZE",
    "ArchiveIndex",
    "Member",
    "SeekableArchive",
    "TarArchive",
    "normalize_name",
    "open_regular_file",
    "read_member",
]

HEAD_SIZE = 8  # bytes: enough to detect a member's compression
_MAX_MEMBERS = 100_000
# The blobs of a layout, and files at most one directory deep, as in `docker save` archives.
_MEMBER_NAME = re.compile(r"blobs/sha(?:256/[0-9a-f]{64}|512/[0-9a-f]{128})|(?:[^/]{1,160}/)?[^/]{1,160}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file of the archive: offset and size of its data, in bytes."""

    offset: int
    size: int


class ArchiveIndex:
    """The members of an archive that can belong to an image: files, and symbolic links with their targets."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.files: dict[str, Member] = {}
        self.links: dict[str, str] = {}

    def scan(self, reader: TarReader) -> Iterator[tuple[str, TarEntry]]:
        """Add every member; yield each file while the reader is at its data."""
        for entry in reader:
            name = normalize_name(entry.name)
            if entry.type not in (REGULAR, SYMLINK) or not _MEMBER_NAME.fullmatch(name):
                continue
            self._check_name(name)
            if entry.type == SYMLINK:
                self.links[name] = entry.linkname
            else:
                self.files[name] = Member(offset=entry.offset, size=entry.size)
                yield name, entry

    def get_member(self, name: str) -> Member:
        """Return the file of that name. Raises :class:`MalformedImage` if there is none."""
        if name not in self.files:
            raise MalformedImage(f"{name} is missing from {self.description}")
        return self.files[name]

    def get_offset(self, name: str) -> int:
        """Return the offset of a file's data; 0 if there is no such file."""
        return self.files[name].offset if name in self.files else 0

    def _check_name(self, name: str) -> None:
        """Reject a second member of the same name: tools differ in which of them they use."""
        if name in self.files or name in self.links:
            raise MalformedImage(f"{self.description} contains {name} twice")
        if len(self.files) + len(self.links) >= _MAX_MEMBERS:
            raise LimitExceeded(f"{self.description} contains more than {_MAX_MEMBERS} files")


class TarArchive(Protocol):
    """An archive whose members can be opened by name, in any order."""

    @property
    def archive_index(self) -> ArchiveIndex:
        """The members of the archive."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file. Raises :class:`MalformedImage` if it is missing."""
        ...

    def read_head(self, name: str) -> bytes:
        """Return the first :data:`HEAD_SIZE` bytes of a file."""
        ...

    def close(self) -> None:
        """Close the archive; reading from its open streams fails afterwards."""
        ...


def normalize_name(name: str) -> str:
    """Remove the ``./`` that ``tar -C DIR .`` puts before each name."""
    return name.removeprefix("./")


def read_member(archive: TarArchive, name: str, limit: int) -> bytes:
    """Return the content of a file. Raises :class:`LimitExceeded` past ``limit`` bytes."""
    if archive.archive_index.get_member(name).size > limit:
        raise LimitExceeded(f"{name} in {archive.archive_index.description} has more than {limit} bytes")
    with archive.open(name) as stream:
        return stream.read()


class SeekableArchive:
    """An uncompressed archive in a file."""

    def __init__(self, fd: int, description: str) -> None:
        """Take ownership of the file descriptor; read the archive's headers."""
        self._fd = fd
        self.archive_index = ArchiveIndex(description)
        try:
            with io.BufferedReader(FileSlice(fd, 0, os.fstat(fd).st_size)) as stream:
                for _ in self.archive_index.scan(TarReader(stream)):
                    pass
        except BaseException:
            self.close()
            raise

    def open(self, name: str) -> BinaryIO:
        """Open a file as a seekable stream with its own position."""
        member = self.archive_index.get_member(name)
        return io.BufferedReader(FileSlice(self._fd, member.offset, member.size), 1 << 16)

    def read_head(self, name: str) -> bytes:
        """Return the first :data:`HEAD_SIZE` bytes of a file."""
        member = self.archive_index.get_member(name)
        return os.pread(self._fd, min(HEAD_SIZE, member.size), member.offset)

    def close(self) -> None:
        """Close the archive; reading from its open streams fails afterwards."""
        os.close(self._fd)


def open_regular_file(path: Path) -> int:
    """Return a descriptor of a regular file. O_NONBLOCK: opening a FIFO does not wait for its writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a regular file")
    return fd
