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

__all__ = ["GZIP", "PLAIN", "ZSTD", "Inflated", "compression_of"]

PLAIN, GZIP, ZSTD = "plain", "gzip", "zstd"
_MAGIC = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTD}
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f: a frame of zstd that holds no data
_SKIPPABLE_HIGH = 0x50
_INPUT = 1 << 16  # bytes fed at once: each of many tiny gzip members hands the rest of it back
_OUTPUT = 1 << 20


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


def compression_of(start: bytes) -> str:
    """How data that begin so are compressed: ``gzip``, ``zstd`` or ``plain``; four bytes tell."""
    if start[1:4] == _SKIPPABLE and start[0] & 0xF0 == _SKIPPABLE_HIGH:
        return ZSTD
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), PLAIN)


class Inflated:
    """What is in a stream that may be compressed, forward only.

    ``what`` names it in messages, ``cap`` is the most bytes that it may have uncompressed. Raises
    :class:`MalformedImage` for damaged or cut-off data, or another compression than a ``form`` that
    is given, and :class:`LimitExceeded` for more than the cap, or for a decompression bomb.
    """

    def __init__(
        self, inner: Readable, what: str, *, cap: int = LIMITS.image, form: str = "", limits: Limits = LIMITS
    ) -> None:
        self._inner = inner
        self._what = what
        self._cap = cap
        self._form = form
        self._limits = limits
        self._new: Callable[[], _Decompressor] | None = None
        self._current: _Decompressor | None = None
        self._pending, self._piece, self._at = b"", b"", 0
        self._started = False
        self._read_in = 0
        self.size = 0

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        start, end = self._at, self._at + size
        if end <= len(self._piece):
            self._at = end
            return self._piece[start:end]
        parts = [self._piece[start:]]
        missing = size - len(parts[0])
        while missing and self._next():
            self._at = min(missing, len(self._piece))
            parts.append(self._piece[: self._at])
            missing -= self._at
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        """The same bytes, which are given again."""
        if self._at + size > len(self._piece):
            self._piece, self._at = self.read(size) + self._piece[self._at :], 0
        return self._piece[self._at : self._at + size]

    def seekable(self) -> bool:
        """Forward it is, which is all that a reader of archives asks for."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_CUR) -> int:
        """Skip ``offset`` bytes; a stream that ends before is at its end then."""
        if whence != io.SEEK_CUR or offset < 0:
            raise io.UnsupportedOperation("it is read forward only")
        left = offset - (len(self._piece) - self._at)
        while left > 0 and self._next():
            left -= len(self._piece)
        self._at = len(self._piece) + min(left, 0)
        return self.size - (len(self._piece) - self._at)

    def close(self) -> None:
        """Close the stream that is read from."""
        self._inner.close()

    def _next(self) -> bytes:
        """Go to the next piece; none at the end."""
        if not self._started:
            self._start()
        try:
            piece = self._inflate(self._new) if self._new else self._taken()
        except _damage() as error:
            raise MalformedImage(f"{self._what}: the {self._form} data are damaged: {error}") from None
        self._piece, self._at = piece, 0
        self.size += len(piece)
        self._check_caps()
        return piece

    def _start(self) -> None:
        self._started = True
        self._pending = self._input()
        found = compression_of(self._pending)
        if self._form and found != self._form:
            raise MalformedImage(f"{self._what}: its media type says {self._form}; its bytes are {found}")
        self._form, self._new = found, _maker(found, self._limits)

    def _input(self) -> bytes:
        try:
            data = self._inner.read(_INPUT)
        except OSError as error:
            raise MalformedImage(f"{self._what} cannot be read: {error.strerror or error}") from error
        self._read_in += len(data)
        return data

    def _taken(self) -> bytes:
        data, self._pending = self._pending or self._input(), b""
        return data

    def _inflate(self, new: Callable[[], _Decompressor]) -> bytes:
        """Data of this member, or of the next one that has any: there may be several."""
        while True:
            if self._current is None or self._current.eof:
                if self._current is not None:
                    self._pending, self._current = self._current.unused_data, None
                self._pending = self._pending or self._input()
                if not self._pending:
                    return b""
                self._current = new()
            if self._current.needs_input and not self._pending:
                self._pending = self._input()
                if not self._pending:
                    raise MalformedImage(f"{self._what}: the {self._form} data end too early")
            data, self._pending = self._current.decompress(self._pending, _OUTPUT), b""
            if data:
                return data

    def _check_caps(self) -> None:
        limits = self._limits
        if self.size > self._cap:
            raise LimitExceeded(f"{self._what} is larger than {self._cap} bytes uncompressed")
        if self.size > limits.ratio_free and self.size > limits.ratio * self._read_in:
            ratio = self.size // max(self._read_in, 1)
            raise LimitExceeded(f"{self._what} is a decompression bomb: {ratio} times its compressed size")


def _zstd() -> ModuleType:
    """The module for zstd, which most images do without."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _damage() -> tuple[type[Exception], ...]:
    """What decompressors raise; isal's type stubs call its exception class an exception."""
    return cast("type[Exception]", igzip_lib.IsalError), _zstd().ZstdError


def _maker(form: str, limits: Limits) -> Callable[[], _Decompressor] | None:
    if form == GZIP:
        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if form == ZSTD:
        zstd = _zstd()
        options = {int(zstd.DecompressionParameter.window_log_max): limits.zstd_window_log}
        return lambda: zstd.ZstdDecompressor(options=options)
    return None
