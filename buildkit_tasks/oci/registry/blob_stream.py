"""A blob from a registry as one stream, however often the connection breaks."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.registry.http import Response

__all__ = ["BlobStream"]

_MAX_RESUMES = 5
_PARTIAL_CONTENT = 206
_CHUNK_SIZE = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)", re.ASCII)


class BlobStream(io.RawIOBase):
    """The bytes behind a descriptor, unchecked, and at most one more than it states.

    ``ask(offset)`` gives the answer to a request for everything from there on. A broken connection
    is taken up again where it broke, :data:`_RESUMES` times in all: by range (RFC 9110, section
    14), or from the start, skipping what was read. Closing it early reads no further.
    """

    def __init__(self, fetch: Callable[[int], Response], descriptor: Descriptor) -> None:
        super().__init__()
        self._fetch = fetch
        self._descriptor = descriptor
        self._offset = 0
        self._resumes_left = _MAX_RESUMES
        self._response = fetch(0)

    def readable(self) -> bool:
        """It is for reading alone."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, straight from the connection: nothing is copied on the way."""
        remaining = self._descriptor.size + 1 - self._offset  # one too many shows a blob that is too long
        count = remaining if size < 0 else min(size, remaining)
        while count > 0:
            try:
                data = self._response.read(count)
            except TransientError as error:
                self._resume(error)
                continue
            if data or self._response.is_framed or self._offset >= self._descriptor.size:
                self._offset += len(data)
                return data
            self._resume(TransientError(f"{self._response.url.origin} broke off"))
        return b""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """As :meth:`read` does."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Leave the connection to the next blob if this one was read to its end, or close it."""
        if not self.closed:
            self._response.close()
        super().close()

    def _resume(self, cause: TransientError) -> None:
        """Ask for the rest."""
        while True:
            self._response.close()
            if self._resumes_left == 0:
                raise RegistryError(
                    f"{self._descriptor.digest} broke off {_MAX_RESUMES + 1} times, at byte "
                    f"{self._offset} of "
                    f"{self._descriptor.size}: {cause.message}",
                    hint=cause.hint,
                )
            self._resumes_left -= 1
            try:
                self._response = self._fetch(self._offset)
                self._skip_to_offset()
            except TransientError as error:
                cause = error
            else:
                return

    def _skip_to_offset(self) -> None:
        """Pass over what was read before, unless the server does so itself."""
        response = self._response
        if response.status == _PARTIAL_CONTENT:
            match = _CONTENT_RANGE.fullmatch(response.get_header("Content-Range"))
            if match is None or int(match[1]) != self._offset:
                raise RegistryError(
                    f"{response.url.origin} sends another part than byte {self._offset} and on"
                )
            return
        remaining = self._offset
        while remaining:
            data = response.read(min(remaining, _CHUNK_SIZE))
            if not data:
                raise TransientError(f"{response.url.origin} sends less than before")
            remaining -= len(data)
