"""Blob downloads that are resumed when the connection breaks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.errors import TransientError
from buildkit_tasks.oci.streams import RawReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.registry.http import Response

__all__ = ["BlobStream"]

_MAX_RESUMES = 5
_PARTIAL_CONTENT = 206
_CHUNK_SIZE = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)", re.ASCII)


class BlobStream(RawReader):
    """The unverified bytes of a descriptor's blob, and at most one byte more than its size.

    ``fetch(offset)`` requests everything from an offset. After a broken connection the download resumes at
    the same offset, :data:`_MAX_RESUMES` times in all: by a range request (RFC 9110, section 14) or, if
    the server ignores ranges, by skipping the bytes before it. Closing the stream early reads no further.
    """

    def __init__(self, fetch: Callable[[int], Response], descriptor: Descriptor) -> None:
        super().__init__()
        self._fetch = fetch
        self._descriptor = descriptor
        self._offset = 0
        self._resumes_left = _MAX_RESUMES
        self._response = fetch(0)

    def read_some(self, size: int) -> bytes:
        """Return at most ``size`` bytes as they arrive from the connection."""
        # One byte more than the size reveals a blob that is too long.
        count = min(size, self._descriptor.size + 1 - self._offset)
        while count > 0:
            try:
                data = self._response.read(count)
            except TransientError as error:
                self._resume(error)
                continue
            if data or self._response.is_framed or self._offset >= self._descriptor.size:
                self._offset += len(data)
                return data
            self._resume(TransientError(f"{self._response.url.origin} closed the connection early"))
        return b""

    def close(self) -> None:
        """Close the stream; a connection that was read to the end of the body is reused."""
        if not self.closed and "_response" in vars(self):  # not if the first request failed
            self._response.close()
        super().close()

    def _resume(self, cause: TransientError) -> None:
        """Request the rest of the blob, or raise :class:`RegistryError` after too many attempts."""
        while True:
            self._response.close()
            if self._resumes_left == 0:
                raise RegistryError(
                    f"the download of {self._descriptor.digest} was interrupted {_MAX_RESUMES + 1} times, "
                    f"at byte {self._offset} of {self._descriptor.size}: {cause.message}",
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
        """Skip the bytes before the offset if the server sends them."""
        response = self._response
        if response.status == _PARTIAL_CONTENT:
            match = _CONTENT_RANGE.fullmatch(response.get_header("Content-Range"))
            if match is None or int(match[1]) != self._offset:
                raise RegistryError(
                    f"{response.url.origin} sent a range that does not start at byte {self._offset}"
                )
            return
        remaining = self._offset
        while remaining:
            data = response.read(min(remaining, _CHUNK_SIZE))
            if not data:
                raise TransientError(f"{response.url.origin} sent fewer bytes than before")
            remaining -= len(data)
