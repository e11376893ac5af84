"""The members of a tar archive that holds an image: a table made once, and streams of what is in it.

A plain archive is read in place, several members at a time if need be. Nothing is unpacked.
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

HEAD_SIZE = 8  # bytes: enough to tell how a member is compressed
_MAX_MEMBERS = 100_000
# The names of a layout, and whatever lies at most one folder deep, as in `docker save` archives.
_MEMBER_NAME = re.compile(r"blobs/sha(?:256/[0-9a-f]{64}|512/[0-9a-f]{128})|(?:[^/]{1,160}/)?[^/]{1,160}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file of the archive: where its data begin, and how many bytes they are."""

    offset: int
    size: int


class ArchiveIndex:
    """What an archive holds that can belong to an image: files, and links with their targets."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.files: dict[str, Member] = {}
        self.links: dict[str, str] = {}

    def scan(self, reader: TarReader) -> Iterator[tuple[str, TarEntry]]:
        """Note every member; gives each file while the reader stands at its data."""
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
        """The member of that name. Raises :class:`MalformedImage` if there is none."""
        if name not in self.files:
            raise MalformedImage(f"{name} is missing from {self.description}")
        return self.files[name]

    def _check_name(self, name: str) -> None:
        """Two members of one name would be two images: one for each way of reading."""
        if name in self.files or name in self.links:
            raise MalformedImage(f"{self.description} holds {name} twice")
        if len(self.files) + len(self.links) >= _MAX_MEMBERS:
            raise LimitExceeded(f"{self.description} holds more than {_MAX_MEMBERS} files")


class TarArchive(Protocol):
    """An archive whose members can be opened by name, in whatever order."""

    @property
    def archive_index(self) -> ArchiveIndex:
        """What there is."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The data of a file. Raises :class:`MalformedImage` if it is not there."""
        ...

    def read_head(self, name: str) -> bytes:
        """The first few bytes of a file."""
        ...

    def close(self) -> None:
        """Let go of the archive; streams that are still open fail from then on."""
        ...


def normalize_name(name: str) -> str:
    """A member's name as it is looked for: ``tar -C DIR .`` puts ``./`` before each."""
    return name.removeprefix("./")


def read_member(archive: TarArchive, name: str, limit: int) -> bytes:
    """A whole member. Raises :class:`LimitExceeded` past ``limit`` bytes."""
    if archive.archive_index.get_member(name).size > limit:
        raise LimitExceeded(f"{name} in {archive.archive_index.description} has more than {limit} bytes")
    with archive.open(name) as stream:
        return stream.read()


class SeekableArchive:
    """A plain archive in a file, which random access serves best."""

    def __init__(self, fd: int, description: str) -> None:
        """Take over the open file ``number``."""
        self._fd = fd
        self.archive_index = ArchiveIndex(description)
        try:
            with io.BufferedReader(_SeekableSlice(fd, 0, os.fstat(fd).st_size)) as stream:
                for _ in self.archive_index.scan(TarReader(stream)):
                    pass
        except BaseException:
            self.close()
            raise

    def open(self, name: str) -> BinaryIO:
        """A seekable stream with a position of its own."""
        member = self.archive_index.get_member(name)
        return io.BufferedReader(_SeekableSlice(self._fd, member.offset, member.size), 1 << 16)

    def read_head(self, name: str) -> bytes:
        """The first few bytes of a file."""
        member = self.archive_index.get_member(name)
        return os.pread(self._fd, min(HEAD_SIZE, member.size), member.offset)

    def close(self) -> None:
        """Close the file; streams that are still open fail from then on."""
        os.close(self._fd)


def open_regular_file(path: Path) -> int:
    """Open a regular file, without waiting for a FIFO's writer; gives its number."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is no regular file")
    return fd


class _SeekableSlice(io.RawIOBase):
    """A span of a file with a position of its own; the file is not closed with it."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._start = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = max(min(len(buffer), self._size - self._position), 0)
        data = os.pread(self._fd, count, self._start + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
