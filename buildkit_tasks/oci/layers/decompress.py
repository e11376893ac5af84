"""Decompress a stream (plain, gzip or zstd) with limits on size and ratio against decompression bombs."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Protocol, cast

from isal import igzip_lib

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["GZIP", "PLAIN", "ZSTD", "DecompressedStream", "detect_compression"]

PLAIN, GZIP, ZSTD = "plain", "gzip", "zstd"
_COMPRESSION_MAGICS = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTD}
# A skippable zstd frame, which holds no data, starts with 0x50 to 0x5f and these bytes (RFC 8878, 3.1.2).
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"
_SKIPPABLE_HIGH_NIBBLE = 0x50
_INPUT_SIZE = 1 << 16  # bytes per call; small, as each of many tiny gzip members copies the unused rest
_OUTPUT_SIZE = 1 << 20


class Readable(Protocol):
    """A stream of compressed bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; none at the end."""

    def close(self) -> None:
        """Close the stream."""


class _Decompressor(Protocol):
    """The interface of bz2, lzma, zstd and isal decompressors; each reads one member or frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def detect_compression(head: bytes) -> str:
    """Return the compression of data by its first four bytes: ``gzip``, ``zstd`` or ``plain``."""
    if head[1:4] == _SKIPPABLE_MAGIC and head[0] & 0xF0 == _SKIPPABLE_HIGH_NIBBLE:
        return ZSTD
    return next((name for magic, name in _COMPRESSION_MAGICS.items() if head.startswith(magic)), PLAIN)


class DecompressedStream:
    """The uncompressed bytes of a stream, forward only.

    ``description`` names the stream in messages. Reading raises :class:`MalformedImage` for corrupt or
    truncated data and for another compression than ``compression`` (if not empty), and
    :class:`LimitExceeded` past ``max_size`` uncompressed bytes or the limits' compression ratio.
    """

    def __init__(
        self,
        stream: Readable,
        description: str,
        *,
        max_size: int = LIMITS.image_bytes,
        compression: str = "",
        limits: Limits = LIMITS,
    ) -> None:
        self._stream = stream
        self._description = description
        self._max_size = max_size
        self._compression = compression
        self._limits = limits
        self._make_decompressor: Callable[[], _Decompressor] | None = None
        self._decompressor: _Decompressor | None = None
        self._pending, self._chunk, self._offset = b"", b"", 0
        self._started = False
        self._compressed_size = 0
        self.size = 0

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes; fewer only at the end."""
        start, end = self._offset, self._offset + size
        if end <= len(self._chunk):
            self._offset = end
            return self._chunk[start:end]
        chunks = [self._chunk[start:]]
        remaining = size - len(chunks[0])
        while remaining and self._next_chunk():
            self._offset = min(remaining, len(self._chunk))
            chunks.append(self._chunk[: self._offset])
            remaining -= self._offset
        return b"".join(chunks)

    def peek(self, size: int) -> bytes:
        """Return the next ``size`` bytes without consuming them; fewer only at the end."""
        if self._offset + size > len(self._chunk):
            self._chunk, self._offset = self.read(size) + self._chunk[self._offset :], 0
        return self._chunk[self._offset : self._offset + size]

    def seekable(self) -> bool:
        """Return True: :meth:`seek` works forward, which is enough for a tar reader."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_CUR) -> int:
        """Skip ``offset`` bytes, or to the end of a shorter stream; return the new position."""
        if whence != io.SEEK_CUR or offset < 0:
            raise io.UnsupportedOperation("the stream can only be read forward")
        remaining = offset - (len(self._chunk) - self._offset)
        while remaining > 0 and self._next_chunk():
            remaining -= len(self._chunk)
        self._offset = len(self._chunk) + min(remaining, 0)
        return self.size - (len(self._chunk) - self._offset)

    def close(self) -> None:
        """Close the compressed stream."""
        self._stream.close()

    def _next_chunk(self) -> bytes:
        """Make the next chunk the current one and return it; it is empty at the end."""
        if not self._started:
            self._detect_compression()
        make = self._make_decompressor
        try:
            chunk = self._decompress(make) if make else self._read_plain()
        except _decompression_errors() as error:
            message = f"{self._description}: the {self._compression} data is corrupt: {error}"
            raise MalformedImage(message) from None
        self._chunk, self._offset = chunk, 0
        self.size += len(chunk)
        self._check_limits()
        return chunk

    def _detect_compression(self) -> None:
        self._started = True
        self._pending = self._read_input()
        compression = detect_compression(self._pending)
        if self._compression and compression != self._compression:
            raise MalformedImage(
                f"{self._description}: the media type says {self._compression}, but the data is {compression}"
            )
        self._compression = compression
        self._make_decompressor = _decompressor_factory(compression, self._limits)

    def _read_input(self) -> bytes:
        try:
            data = self._stream.read(_INPUT_SIZE)
        except OSError as error:
            raise MalformedImage(f"{self._description} cannot be read: {error.strerror or error}") from error
        self._compressed_size += len(data)
        return data

    def _read_plain(self) -> bytes:
        data, self._pending = self._pending or self._read_input(), b""
        return data

    def _decompress(self, make_decompressor: Callable[[], _Decompressor]) -> bytes:
        """Return data of the current gzip member or zstd frame, or of the next one that has any."""
        while True:
            if self._decompressor is None or self._decompressor.eof:
                if self._decompressor is not None:
                    self._pending, self._decompressor = self._decompressor.unused_data, None
                self._pending = self._pending or self._read_input()
                if not self._pending:
                    return b""
                self._decompressor = make_decompressor()
            if self._decompressor.needs_input and not self._pending:
                self._pending = self._read_input()
                if not self._pending:
                    raise MalformedImage(f"{self._description}: the {self._compression} data is truncated")
            data, self._pending = self._decompressor.decompress(self._pending, _OUTPUT_SIZE), b""
            if data:
                return data

    def _check_limits(self) -> None:
        limits = self._limits
        if self.size > self._max_size:
            raise LimitExceeded(f"{self._description} is larger than {self._max_size} bytes uncompressed")
        if (
            self.size > limits.ratio_threshold
            and self.size > limits.compression_ratio * self._compressed_size
        ):
            ratio = self.size // max(self._compressed_size, 1)
            raise LimitExceeded(
                f"{self._description} is a decompression bomb: {ratio} times its compressed size"
            )


def _import_zstd() -> ModuleType:
    """Import zstd late: most images do not use it."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _decompression_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes of the decompressors (isal's stubs type its class as an instance)."""
    return cast("type[Exception]", igzip_lib.IsalError), _import_zstd().ZstdError


def _decompressor_factory(compression: str, limits: Limits) -> Callable[[], _Decompressor] | None:
    if compression == GZIP:
        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if compression == ZSTD:
        zstd = _import_zstd()
        options = {int(zstd.DecompressionParameter.window_log_max): limits.zstd_window_log}
        return lambda: zstd.ZstdDecompressor(options=options)
    return None
