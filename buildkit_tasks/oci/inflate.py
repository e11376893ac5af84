"""A whole archive uncompressed on the way: gzip or zstd, told by its first bytes, within caps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from isal import igzip_lib

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Inflated", "compression_of"]

_GZIP, _ZSTD = "gzip", "zstd"
_MAGIC = {b"\x1f\x8b": _GZIP, b"\x28\xb5\x2f\xfd": _ZSTD}
# isal's type stubs call its exception class an exception.
_DAMAGE: tuple[type[Exception], ...] = (cast("type[Exception]", igzip_lib.IsalError), zstd.ZstdError)
_INPUT = 1 << 16  # bytes fed at once: each of many tiny members hands the rest of it back
_OUTPUT = 1 << 20


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def compression_of(start: bytes) -> str:
    """``gzip`` or ``zstd`` if data that begin so are compressed, else an empty name."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")


class Inflated:
    """What is in a stream that may be compressed, forward only.

    ``what`` names it in messages. Raises :class:`MalformedImage` for damaged or cut-off data and
    :class:`LimitExceeded` for more than an image may be, or for a decompression bomb.
    """

    def __init__(self, inner: BinaryIO, what: str, limits: Limits = LIMITS) -> None:
        self._inner = inner
        self._what = what
        self._limits = limits
        self._new: Callable[[], _Decompressor] | None = None
        self._current: _Decompressor | None = None
        self._input, self._piece, self._at = b"", b"", 0
        self._started = False
        self._block = _INPUT
        self._read_in = 0
        self.size = 0

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        parts: list[bytes] = []
        missing = size
        while missing and (self._at < len(self._piece) or self._next()):
            part = self._piece[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seekable(self) -> bool:
        """It is not: to skip data is to uncompress them."""
        return False

    def close(self) -> None:
        """Close the stream that is read from."""
        self._inner.close()

    def _next(self) -> bool:
        if not self._started:
            self._started = True
            self._input = self._fetch()
            self._new = self._maker(compression_of(self._input))
            self._block = _INPUT if self._new else _OUTPUT
        try:
            self._piece = self._inflate(self._new) if self._new else self._plain()
        except _DAMAGE as error:
            raise MalformedImage(f"{self._what}: the compressed data are damaged: {error}") from None
        self._at = 0
        self.size += len(self._piece)
        self._check_caps()
        return bool(self._piece)

    def _plain(self) -> bytes:
        data, self._input = self._input or self._fetch(), b""
        return data

    def _inflate(self, new: Callable[[], _Decompressor]) -> bytes:
        """Data of this member or frame, or of the next one that has any."""
        while True:
            if self._current is None or self._current.eof:
                if self._current is not None:
                    self._input = self._current.unused_data
                self._input = self._input or self._fetch()
                if not self._input:
                    return b""
                self._current = new()
            if self._current.needs_input and not self._input:
                self._input = self._fetch()
                if not self._input:
                    raise MalformedImage(f"{self._what}: the compressed data end too early")
            data, self._input = self._current.decompress(self._input, _OUTPUT), b""
            if data:
                return data

    def _fetch(self) -> bytes:
        try:
            data = self._inner.read(self._block)
        except OSError as error:
            raise MalformedImage(f"{self._what} cannot be read: {error.strerror or error}") from error
        self._read_in += len(data)
        return data

    def _check_caps(self) -> None:
        limits = self._limits
        if self.size > limits.image:
            raise LimitExceeded(f"{self._what} is larger than {limits.image} bytes uncompressed")
        if self.size > limits.ratio_free and self.size > limits.ratio * self._read_in:
            ratio = self.size // max(self._read_in, 1)
            raise LimitExceeded(f"{self._what} is a decompression bomb: {ratio} times its compressed size")

    def _maker(self, form: str) -> Callable[[], _Decompressor] | None:
        if form == _GZIP:
            return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        if form == _ZSTD:
            options = {int(zstd.DecompressionParameter.window_log_max): self._limits.zstd_window_log}
            return lambda: zstd.ZstdDecompressor(options=options)
        return None
