"""A stream uncompressed on the way, plain, gzip or zstd, within caps that stop a decompression bomb."""

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
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f: a frame of zstd that holds no data
_SKIPPABLE_HIGH_NIBBLE = 0x50
_INPUT_SIZE = 1 << 16  # bytes fed at once: each of many tiny gzip members hands the rest of it back
_OUTPUT_SIZE = 1 << 20


class Readable(Protocol):
    """What the compressed bytes come from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` of the next bytes; none at the end."""

    def close(self) -> None:
        """Let go of them."""


class _Decompressor(Protocol):
    """What bz2, lzma, zstd and isal's decompressors have in common: one member or frame each."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def detect_compression(head: bytes) -> str:
    """How data that begin so are compressed: ``gzip``, ``zstd`` or ``plain``; four bytes tell."""
    if head[1:4] == _SKIPPABLE_MAGIC and head[0] & 0xF0 == _SKIPPABLE_HIGH_NIBBLE:
        return ZSTD
    return next((name for magic, name in _COMPRESSION_MAGICS.items() if head.startswith(magic)), PLAIN)


class DecompressedStream:
    """What is in a stream that may be compressed, forward only.

    ``what`` names it in messages, ``cap`` is the most bytes that it may have uncompressed. Raises
    :class:`MalformedImage` for damaged or cut-off data, or another compression than a ``form`` that
    is given, and :class:`LimitExceeded` for more than the cap, or for a decompression bomb.
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
        """The next ``size`` bytes; fewer only at the end."""
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
        """The same bytes, which are given again."""
        if self._offset + size > len(self._chunk):
            self._chunk, self._offset = self.read(size) + self._chunk[self._offset :], 0
        return self._chunk[self._offset : self._offset + size]

    def seekable(self) -> bool:
        """Forward it is, which is all that a reader of archives asks for."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_CUR) -> int:
        """Skip ``offset`` bytes; a stream that ends before is at its end then."""
        if whence != io.SEEK_CUR or offset < 0:
            raise io.UnsupportedOperation("it is read forward only")
        remaining = offset - (len(self._chunk) - self._offset)
        while remaining > 0 and self._next_chunk():
            remaining -= len(self._chunk)
        self._offset = len(self._chunk) + min(remaining, 0)
        return self.size - (len(self._chunk) - self._offset)

    def close(self) -> None:
        """Close the stream that is read from."""
        self._stream.close()

    def _next_chunk(self) -> bytes:
        """Go to the next piece; none at the end."""
        if not self._started:
            self._detect_format()
        try:
            chunk = (
                self._decompress(self._make_decompressor) if self._make_decompressor else self._take_plain()
            )
        except _decompression_errors() as error:
            raise MalformedImage(
                f"{self._description}: the {self._compression} data are damaged: {error}"
            ) from None
        self._chunk, self._offset = chunk, 0
        self.size += len(chunk)
        self._check_limits()
        return chunk

    def _detect_format(self) -> None:
        self._started = True
        self._pending = self._read_input()
        compression = detect_compression(self._pending)
        if self._compression and compression != self._compression:
            raise MalformedImage(
                f"{self._description}: its media type says {self._compression}; its bytes are {compression}"
            )
        self._compression, self._make_decompressor = (
            compression,
            _decompressor_factory(compression, self._limits),
        )

    def _read_input(self) -> bytes:
        try:
            data = self._stream.read(_INPUT_SIZE)
        except OSError as error:
            raise MalformedImage(f"{self._description} cannot be read: {error.strerror or error}") from error
        self._compressed_size += len(data)
        return data

    def _take_plain(self) -> bytes:
        data, self._pending = self._pending or self._read_input(), b""
        return data

    def _decompress(self, make_decompressor: Callable[[], _Decompressor]) -> bytes:
        """Data of this member, or of the next one that has any: there may be several."""
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
                    raise MalformedImage(f"{self._description}: the {self._compression} data end too early")
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
    """The module for zstd, which most images do without."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _decompression_errors() -> tuple[type[Exception], ...]:
    """What decompressors raise; isal's type stubs call its exception class an exception."""
    return cast("type[Exception]", igzip_lib.IsalError), _import_zstd().ZstdError


def _decompressor_factory(compression: str, limits: Limits) -> Callable[[], _Decompressor] | None:
    if compression == GZIP:
        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if compression == ZSTD:
        zstd = _import_zstd()
        options = {int(zstd.DecompressionParameter.window_log_max): limits.zstd_window_log}
        return lambda: zstd.ZstdDecompressor(options=options)
    return None
