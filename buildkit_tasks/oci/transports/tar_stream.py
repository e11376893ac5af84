"""An archive that can only be read forward, and be begun again: a compressed file, an engine's answer.

Nothing is unpacked to disk and memory stays bounded. A first walk through the archive makes the
table and keeps small members (documents, small layers). A larger one is gone forward to, from
where an earlier stream ended if that lies before it, else from the beginning: whoever opens
members in the order of their offsets needs one more walk.
"""

from __future__ import annotations

import contextlib
import io
import threading
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.decompress import DecompressedStream
from buildkit_tasks.oci.layers.tar import REGULAR, TarReader
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.transports.tar_members import HEAD_SIZE, ArchiveIndex, Member, normalize_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StreamedArchive"]

_MAX_CACHED_MEMBER = 1 << 20  # a member that is kept in memory
_MAX_CACHED_TOTAL = 32 << 20  # and how much is kept in all
_ALWAYS_CACHED = frozenset({"index.json", "manifest.json", "oci-layout"})  # kept in any case
_MAX_READ_FACTOR = 4  # the bytes of so many of the largest images may go by, over all walks


class StreamedArchive:
    """The members of an archive that ``opener`` opens afresh each time it is called."""

    def __init__(self, opener: Callable[[], BinaryIO], description: str, limits: Limits = LIMITS) -> None:
        self.archive_index = ArchiveIndex(description)
        self._opener = opener
        self._limits = limits
        self._lock = threading.Lock()
        self._idle_walk: _ArchiveWalk | None = None
        self._cached: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}
        self._total_size = 0
        self._walk_count = 0
        self._closed = False
        self._build_index()

    def open(self, name: str) -> BinaryIO:
        """The data of a file; streams may overlap, each that does has a walk of its own."""
        member = self.archive_index.get_member(name)
        if name in self._cached:
            return io.BytesIO(self._cached[name])
        walk = self._acquire_walk(member)
        try:
            walk.seek_member(name, member)
        except BaseException:
            walk.close()
            raise
        return io.BufferedReader(_MemberStream(walk, self._release_walk), 1 << 16)

    def read_head(self, name: str) -> bytes:
        """The first few bytes of a file."""
        self.archive_index.get_member(name)
        return self._heads.get(name) or self._cached.get(name, b"")[:HEAD_SIZE]

    def close(self) -> None:
        """End the walk that waits for the next member."""
        with self._lock:
            self._closed = True
            idle_walk, self._idle_walk = self._idle_walk, None
        if idle_walk is not None:
            idle_walk.close()

    def _build_index(self) -> None:
        """Make the table, and read to the very end: a file that was cut off is found here."""
        budget = _MAX_CACHED_TOTAL
        with contextlib.closing(self._start_walk()) as walk:
            for name, entry in self.archive_index.scan(walk.reader):
                is_document = name in _ALWAYS_CACHED and entry.size <= self._limits.document_bytes
                if is_document or entry.size <= min(_MAX_CACHED_MEMBER, budget):
                    self._cached[name] = walk.reader.read(entry.size)
                    budget -= 0 if is_document else entry.size
                else:
                    self._heads[name] = walk.reader.read(HEAD_SIZE)
            self._total_size = walk.drain()

    def _start_walk(self) -> _ArchiveWalk:
        if self._walk_count * self._total_size > _MAX_READ_FACTOR * self._limits.image_bytes:
            message = f"{self.archive_index.description} was read through {self._walk_count} times"
            raise LimitExceeded(
                f"{message}: its layers lie in too bad an order",
                hint="uncompress it first, then name the .tar file",
            )
        self._walk_count += 1
        return _ArchiveWalk(
            DecompressedStream(
                self._opener(),
                self.archive_index.description,
                max_size=self._limits.image_bytes,
                limits=self._limits,
            ),
            self.archive_index.description,
        )

    def _acquire_walk(self, member: Member) -> _ArchiveWalk:
        with self._lock:
            if self._closed:
                raise ValueError("the archive is closed")
            idle_walk, self._idle_walk = self._idle_walk, None
        if idle_walk is not None and idle_walk.offset < member.offset:
            return idle_walk
        if idle_walk is not None:
            idle_walk.close()
        return self._start_walk()

    def _release_walk(self, walk: _ArchiveWalk) -> None:
        with self._lock:
            surplus = walk if self._closed else self._idle_walk
            if not self._closed:
                self._idle_walk = walk
        if surplus is not None:
            surplus.close()


class _ArchiveWalk:
    """One walk through the archive, from its beginning; ``at`` is the member where it stands."""

    def __init__(self, stream: DecompressedStream, description: str) -> None:
        self._stream = stream
        self._description = description
        self.reader = TarReader(stream)
        self.offset = -1

    def seek_member(self, name: str, member: Member) -> None:
        """Walk on to that member's data."""
        for entry in self.reader:
            self.offset = entry.offset
            if entry.type == REGULAR and normalize_name(entry.name) == name and entry.size == member.size:
                return
        raise MalformedImage(f"{self._description} has changed while it was read: {name} is no longer there")

    def drain(self) -> int:
        """Read what follows the archive's end; gives the size of everything."""
        while self._stream.read(1 << 20):
            pass
        return self._stream.size

    def close(self) -> None:
        self._stream.close()


class _MemberStream(io.RawIOBase):
    """The data of the member where a walk stands; closing it gives the walk back."""

    def __init__(self, walk: _ArchiveWalk, release: Callable[[_ArchiveWalk], None]) -> None:
        super().__init__()
        self._walk: _ArchiveWalk | None = walk
        self._release = release

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._walk is None:
            raise ValueError("the stream failed before")
        try:
            data = self._walk.reader.read(len(buffer))
        except BaseException:
            self._walk.close()
            self._walk = None
            raise
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        walk, self._walk = self._walk, None
        if walk is not None:
            self._release(walk)
        super().close()
