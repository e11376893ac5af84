"""A blob from a registry as one stream, however often the connection breaks."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.errors import Interruption

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.registry.http import Answer

__all__ = ["BlobStream"]

_RESUMES = 5
_PARTIAL = 206
_PIECE = 1 << 20
_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)", re.ASCII)


class BlobStream(io.RawIOBase):
    """The bytes behind a descriptor, unchecked, and at most one more than it states.

    ``ask(offset)`` gives the answer to a request for everything from there on. A broken connection
    is taken up again where it broke, :data:`_RESUMES` times in all: by range (RFC 9110, section
    14), or from the start, skipping what was read. Closing it early reads no further.
    """

    def __init__(self, ask: Callable[[int], Answer], descriptor: Descriptor) -> None:
        super().__init__()
        self._ask = ask
        self._descriptor = descriptor
        self._at = 0
        self._left = _RESUMES
        self._answer = ask(0)

    def readable(self) -> bool:
        """It is for reading alone."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, straight from the connection: nothing is copied on the way."""
        rest = self._descriptor.size + 1 - self._at  # one too many shows a blob that is too long
        wanted = rest if size < 0 else min(size, rest)
        while wanted > 0:
            try:
                data = self._answer.read(wanted)
            except Interruption as error:
                self._resume(error)
                continue
            if data or self._answer.framed or self._at >= self._descriptor.size:
                self._at += len(data)
                return data
            self._resume(Interruption(f"{self._answer.place.origin} broke off"))
        return b""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """As :meth:`read` does."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Leave the connection to the next blob if this one was read to its end, or close it."""
        if not self.closed:
            self._answer.close()
        super().close()

    def _resume(self, problem: Interruption) -> None:
        """Ask for the rest."""
        while True:
            self._answer.close()
            if self._left == 0:
                raise RegistryError(
                    f"{self._descriptor.digest} broke off {_RESUMES + 1} times, at byte {self._at} of "
                    f"{self._descriptor.size}: {problem.message}",
                    hint=problem.hint,
                )
            self._left -= 1
            try:
                self._answer = self._ask(self._at)
                self._skip()
            except Interruption as error:
                problem = error
            else:
                return

    def _skip(self) -> None:
        """Pass over what was read before, unless the server does so itself."""
        answer = self._answer
        if answer.status == _PARTIAL:
            found = _RANGE.fullmatch(answer.header("Content-Range"))
            if found is None or int(found[1]) != self._at:
                raise RegistryError(f"{answer.place.origin} sends another part than byte {self._at} and on")
            return
        left = self._at
        while left:
            data = answer.read(min(left, _PIECE))
            if not data:
                raise Interruption(f"{answer.place.origin} sends less than before")
            left -= len(data)
