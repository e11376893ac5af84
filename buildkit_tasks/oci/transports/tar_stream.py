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
from buildkit_tasks.oci.layers.decompress import Inflated
from buildkit_tasks.oci.layers.tar import REGULAR, TarReader
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.transports.tar_members import HEAD, Member, Table, plain_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Rewindable"]

_SMALL = 1 << 20  # a member that is kept in memory
_KEPT = 32 << 20  # and how much is kept in all
_DOCUMENTS = frozenset({"index.json", "manifest.json", "oci-layout"})  # kept in any case
_WALKS = 4  # the bytes of so many of the largest images may go by, over all walks


class Rewindable:
    """The members of an archive that ``opener`` opens afresh each time it is called."""

    def __init__(self, opener: Callable[[], BinaryIO], what: str, limits: Limits = LIMITS) -> None:
        self.table = Table(what)
        self._opener = opener
        self._limits = limits
        self._lock = threading.Lock()
        self._idle: _Walk | None = None
        self._kept: dict[str, bytes] = {}
        self._heads: dict[str, bytes] = {}
        self._size = 0
        self._walks = 0
        self._closed = False
        self._survey()

    def open(self, name: str) -> BinaryIO:
        """The data of a file; streams may overlap, each that does has a walk of its own."""
        member = self.table.file(name)
        if name in self._kept:
            return io.BytesIO(self._kept[name])
        walk = self._borrow(member)
        try:
            walk.go_to(name, member)
        except BaseException:
            walk.close()
            raise
        return io.BufferedReader(_MemberStream(walk, self._give_back), 1 << 16)

    def head(self, name: str) -> bytes:
        """The first few bytes of a file."""
        self.table.file(name)
        return self._heads.get(name) or self._kept.get(name, b"")[:HEAD]

    def close(self) -> None:
        """End the walk that waits for the next member."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.close()

    def _survey(self) -> None:
        """Make the table, and read to the very end: a file that was cut off is found here."""
        left = _KEPT
        with contextlib.closing(self._begin()) as walk:
            for name, entry in self.table.fill(walk.reader):
                document = name in _DOCUMENTS and entry.size <= self._limits.document
                if document or entry.size <= min(_SMALL, left):
                    self._kept[name] = walk.reader.read(entry.size)
                    left -= 0 if document else entry.size
                else:
                    self._heads[name] = walk.reader.read(HEAD)
            self._size = walk.finish()

    def _begin(self) -> _Walk:
        if self._walks * self._size > _WALKS * self._limits.image:
            times = f"{self.table.what} was read through {self._walks} times"
            raise LimitExceeded(
                f"{times}: its layers lie in too bad an order",
                hint="uncompress it first, then name the .tar file",
            )
        self._walks += 1
        return _Walk(
            Inflated(self._opener(), self.table.what, cap=self._limits.image, limits=self._limits),
            self.table.what,
        )

    def _borrow(self, member: Member) -> _Walk:
        with self._lock:
            if self._closed:
                raise ValueError("the archive is closed")
            idle, self._idle = self._idle, None
        if idle is not None and idle.at < member.offset:
            return idle
        if idle is not None:
            idle.close()
        return self._begin()

    def _give_back(self, walk: _Walk) -> None:
        with self._lock:
            spare = walk if self._closed else self._idle
            if not self._closed:
                self._idle = walk
        if spare is not None:
            spare.close()


class _Walk:
    """One walk through the archive, from its beginning; ``at`` is the member where it stands."""

    def __init__(self, stream: Inflated, what: str) -> None:
        self._stream = stream
        self._what = what
        self.reader = TarReader(stream)
        self.at = -1

    def go_to(self, name: str, member: Member) -> None:
        """Walk on to that member's data."""
        for entry in self.reader:
            self.at = entry.offset
            if entry.type == REGULAR and plain_name(entry.name) == name and entry.size == member.size:
                return
        raise MalformedImage(f"{self._what} has changed while it was read: {name} is no longer there")

    def finish(self) -> int:
        """Read what follows the archive's end; gives the size of everything."""
        while self._stream.read(1 << 20):
            pass
        return self._stream.size

    def close(self) -> None:
        self._stream.close()


class _MemberStream(io.RawIOBase):
    """The data of the member where a walk stands; closing it gives the walk back."""

    def __init__(self, walk: _Walk, give_back: Callable[[_Walk], None]) -> None:
        super().__init__()
        self._walk: _Walk | None = walk
        self._give_back = give_back

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
            self._give_back(walk)
        super().close()
