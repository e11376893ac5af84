"""Access the members of a tar archive that can only be streamed: a compressed file, an engine's response.

Nothing is unpacked to disk, and memory is bounded:

1. The first pass through the archive builds the index and caches small members (documents, small layers).
2. Opening a larger member reads forward to it, from the position of a closed stream if that is before
   the member, else in a new pass from the beginning.

Opening the members in the order of their offsets therefore needs only one more pass.
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
from buildkit_tasks.oci.streams import RawReader
from buildkit_tasks.oci.transports.tar_members import HEAD_SIZE, ArchiveIndex, Member, normalize_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StreamedArchive"]

_MAX_CACHED_MEMBER = 1 << 20  # bytes
_MAX_CACHED_TOTAL = 32 << 20  # bytes, without those of _ALWAYS_CACHED
_ALWAYS_CACHED = frozenset({"index.json", "manifest.json", "oci-layout"})
_MAX_READ_FACTOR = 4  # all passes together may read this many times the largest allowed image


class StreamedArchive:
    """An archive that is streamed; ``opener`` returns a new stream of it on each call.

    Streams of members may be open at the same time, in several threads; each needs its own pass.
    """

    def __init__(self, opener: Callable[[], BinaryIO], description: str, limits: Limits = LIMITS) -> None:
        self.archive_index = ArchiveIndex(description)
        self._opener = opener
        self._limits = limits
        self._lock = threading.Lock()
        self._idle_pass: _ArchivePass | None = None
        self._cached: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}
        self._total_size = 0
        self._pass_count = 0
        self._closed = False
        self._build_index()

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        member = self.archive_index.get_member(name)
        if name in self._cached:
            return io.BytesIO(self._cached[name])
        archive_pass = self._acquire_pass(member)
        try:
            archive_pass.seek_member(name, member)
        except BaseException:
            archive_pass.close()
            raise
        return io.BufferedReader(_MemberStream(archive_pass, self._release_pass), 1 << 16)

    def read_head(self, name: str) -> bytes:
        """Return the first :data:`HEAD_SIZE` bytes of a file."""
        self.archive_index.get_member(name)
        return self._heads.get(name) or self._cached.get(name, b"")[:HEAD_SIZE]

    def close(self) -> None:
        """Close the idle pass; passes of open streams are closed with them."""
        with self._lock:
            self._closed = True
            idle_pass, self._idle_pass = self._idle_pass, None
        if idle_pass is not None:
            idle_pass.close()

    def _build_index(self) -> None:
        """Build the index; read to the end of the stream, to detect a truncated file."""
        budget = _MAX_CACHED_TOTAL
        with contextlib.closing(self._start_pass()) as first_pass:
            reader = first_pass.reader
            for name, entry in self.archive_index.scan(reader):
                is_document = name in _ALWAYS_CACHED and entry.size <= self._limits.document_bytes
                if is_document or entry.size <= min(_MAX_CACHED_MEMBER, budget):
                    self._cached[name] = reader.read(entry.size)
                    budget -= 0 if is_document else entry.size
                else:
                    self._heads[name] = reader.read(HEAD_SIZE)
            self._total_size = first_pass.drain()

    def _start_pass(self) -> _ArchivePass:
        limits, description = self._limits, self.archive_index.description
        if self._pass_count * self._total_size > _MAX_READ_FACTOR * limits.image_bytes:
            raise LimitExceeded(
                f"{description} was read {self._pass_count} times, as its layers are not in the order of use",
                hint="uncompress the file and use the .tar file",
            )
        self._pass_count += 1
        stream = DecompressedStream(self._opener(), description, max_size=limits.image_bytes, limits=limits)
        return _ArchivePass(stream, description)

    def _acquire_pass(self, member: Member) -> _ArchivePass:
        """Return the idle pass if it is before the member, else a new one."""
        with self._lock:
            if self._closed:
                raise ValueError("the archive is closed")
            idle_pass, self._idle_pass = self._idle_pass, None
        if idle_pass is not None and idle_pass.offset < member.offset:
            return idle_pass
        if idle_pass is not None:
            idle_pass.close()
        return self._start_pass()

    def _release_pass(self, archive_pass: _ArchivePass) -> None:
        """Make a pass the idle one; close the previous one, or this one if the archive is closed."""
        with self._lock:
            surplus = archive_pass if self._closed else self._idle_pass
            if not self._closed:
                self._idle_pass = archive_pass
        if surplus is not None:
            surplus.close()


class _ArchivePass:
    """One pass through the archive; ``offset`` is that of the current member, -1 at the beginning."""

    def __init__(self, stream: DecompressedStream, description: str) -> None:
        self._stream = stream
        self._description = description
        self.reader = TarReader(stream)
        self.offset = -1

    def seek_member(self, name: str, member: Member) -> None:
        """Read forward to the data of a member."""
        for entry in self.reader:
            self.offset = entry.offset
            if entry.type == REGULAR and normalize_name(entry.name) == name and entry.size == member.size:
                return
        raise MalformedImage(f"{self._description} has changed while it was read: {name} no longer exists")

    def drain(self) -> int:
        """Read to the end of the stream; return its uncompressed size."""
        while self._stream.read(1 << 20):
            pass
        return self._stream.size

    def close(self) -> None:
        self._stream.close()


class _MemberStream(RawReader):
    """The data of a pass's current member; closing it releases the pass."""

    def __init__(self, archive_pass: _ArchivePass, release: Callable[[_ArchivePass], None]) -> None:
        super().__init__()
        self._pass: _ArchivePass | None = archive_pass
        self._release = release

    def read_some(self, size: int) -> bytes:
        if self._pass is None:
            raise ValueError("the stream has failed")
        try:
            return self._pass.reader.read(size)
        except BaseException:
            self._pass.close()
            self._pass = None
            raise

    def close(self) -> None:
        archive_pass, self._pass = self._pass, None
        if archive_pass is not None:
            self._release(archive_pass)
        super().close()
