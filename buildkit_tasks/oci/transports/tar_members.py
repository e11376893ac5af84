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

    from buildkit_tasks.oci.layers.tar import Entry

__all__ = ["HEAD", "InPlace", "Member", "Members", "Table", "open_file", "plain_name", "read_member"]

HEAD = 8  # bytes: enough to tell how a member is compressed
_MAX_MEMBERS = 100_000
# The names of a layout, and whatever lies at most one folder deep, as in `docker save` archives.
_MEMBER = re.compile(r"blobs/sha(?:256/[0-9a-f]{64}|512/[0-9a-f]{128})|(?:[^/]{1,160}/)?[^/]{1,160}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file of the archive: where its data begin, and how many bytes they are."""

    offset: int
    size: int


class Table:
    """What an archive holds that can belong to an image: files, and links with their targets."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.files: dict[str, Member] = {}
        self.links: dict[str, str] = {}

    def fill(self, reader: TarReader) -> Iterator[tuple[str, Entry]]:
        """Note every member; gives each file while the reader stands at its data."""
        for entry in reader:
            name = plain_name(entry.name)
            if entry.type not in (REGULAR, SYMLINK) or not _MEMBER.fullmatch(name):
                continue
            self._check(name)
            if entry.type == SYMLINK:
                self.links[name] = entry.linkname
            else:
                self.files[name] = Member(offset=entry.offset, size=entry.size)
                yield name, entry

    def file(self, name: str) -> Member:
        """The member of that name. Raises :class:`MalformedImage` if there is none."""
        if name not in self.files:
            raise MalformedImage(f"{name} is missing from {self.what}")
        return self.files[name]

    def _check(self, name: str) -> None:
        """Two members of one name would be two images: one for each way of reading."""
        if name in self.files or name in self.links:
            raise MalformedImage(f"{self.what} holds {name} twice")
        if len(self.files) + len(self.links) >= _MAX_MEMBERS:
            raise LimitExceeded(f"{self.what} holds more than {_MAX_MEMBERS} files")


class Members(Protocol):
    """An archive whose members can be opened by name, in whatever order."""

    @property
    def table(self) -> Table:
        """What there is."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The data of a file. Raises :class:`MalformedImage` if it is not there."""
        ...

    def head(self, name: str) -> bytes:
        """The first few bytes of a file."""
        ...

    def close(self) -> None:
        """Let go of the archive; streams that are still open fail from then on."""
        ...


def plain_name(name: str) -> str:
    """A member's name as it is looked for: ``tar -C DIR .`` puts ``./`` before each."""
    return name.removeprefix("./")


def read_member(members: Members, name: str, limit: int) -> bytes:
    """A whole member. Raises :class:`LimitExceeded` past ``limit`` bytes."""
    if members.table.file(name).size > limit:
        raise LimitExceeded(f"{name} in {members.table.what} has more than {limit} bytes")
    with members.open(name) as stream:
        return stream.read()


class InPlace:
    """A plain archive in a file, which random access serves best."""

    def __init__(self, number: int, what: str) -> None:
        """Take over the open file ``number``."""
        self._number = number
        self.table = Table(what)
        try:
            with io.BufferedReader(_Window(number, 0, os.fstat(number).st_size)) as stream:
                for _ in self.table.fill(TarReader(stream)):
                    pass
        except BaseException:
            self.close()
            raise

    def open(self, name: str) -> BinaryIO:
        """A seekable stream with a position of its own."""
        member = self.table.file(name)
        return io.BufferedReader(_Window(self._number, member.offset, member.size), 1 << 16)

    def head(self, name: str) -> bytes:
        """The first few bytes of a file."""
        member = self.table.file(name)
        return os.pread(self._number, min(HEAD, member.size), member.offset)

    def close(self) -> None:
        """Close the file; streams that are still open fail from then on."""
        os.close(self._number)


def open_file(path: Path) -> int:
    """Open a regular file, without waiting for a FIFO's writer; gives its number."""
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
