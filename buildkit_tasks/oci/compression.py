"""Layers uncompressed: plain, gzip and zstd, within caps that stop a decompression bomb."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Protocol, Self, cast

from isal import igzip_lib

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.blobs import Source, Verified
from buildkit_tasks.oci.hashing import Hasher
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor, Digest

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["LayerStream", "open_layer"]

_OCI = "application/vnd.oci.image.layer.v1.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_PLAIN, _GZIP, _ZSTD = "plain", "gzip", "zstd"
_FORMS = {
    **dict.fromkeys((_OCI, _OCI_FOREIGN, _DOCKER, _DOCKER_FOREIGN), _PLAIN),
    **dict.fromkeys((f"{_OCI}+gzip", f"{_OCI_FOREIGN}+gzip"), _GZIP),
    **dict.fromkeys((f"{_DOCKER}.gzip", f"{_DOCKER_FOREIGN}.gzip"), _GZIP),
    **dict.fromkeys((f"{_OCI}+zstd", f"{_OCI_FOREIGN}+zstd", f"{_DOCKER}.zstd"), _ZSTD),
}
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f: a frame that holds no data
_SKIPPABLE_HIGH = 0x50
# isal's type stubs call its exception class an exception.
_DAMAGE: tuple[type[Exception], ...] = (cast("type[Exception]", igzip_lib.IsalError), zstd.ZstdError)
_BLOCK = 1 << 20  # bytes that are read at once
_INPUT = 1 << 16  # and that are fed at once: each of many tiny gzip members hands the rest of it back
_OUTPUT = 1 << 20


class _Decompressor(Protocol):
    """What bz2, lzma, zstd and isal's decompressors have in common: one member or frame each."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def open_layer(
    source: Source, layer: Descriptor, *, algorithm: str = "sha256", limits: Limits = LIMITS
) -> LayerStream:
    """A stream of the layer's tar archive.

    The blob's digest and size are checked once it has been read to its end; so are the caps on
    size and ratio while reading. Raises :class:`MalformedImage` if the media type is no layer's or
    the bytes are of another compression, :class:`LimitExceeded` for a bomb.
    """
    form = _FORMS.get(layer.media_type)
    if form is None:
        raise MalformedImage(f"layer {layer.digest} is {layer.media_type!r}, which is no known kind of layer")
    return LayerStream(Verified(source, layer), form, algorithm, limits)


class LayerStream:
    """An uncompressed layer, forward only; :meth:`finish` reads what is left and gives its diff_id."""

    def __init__(self, inner: Verified, form: str, algorithm: str, limits: Limits) -> None:
        self._unpacked = _Unpacked(inner, form, limits)
        self._algorithm = algorithm
        self._hash = Hasher(algorithm)
        self._piece = b""
        self._at = 0
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hash.close()
        self._unpacked.close()

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

    def seekable(self) -> bool:
        """Forward it is, which is all that a reader of archives asks for."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_CUR) -> int:
        """Skip ``offset`` bytes; a stream that ends before is at its end then."""
        if whence != io.SEEK_CUR or offset < 0:
            raise io.UnsupportedOperation("a layer is read forward only")
        left = offset - (len(self._piece) - self._at)
        while left > 0 and self._next():
            left -= len(self._piece)
        self._at = len(self._piece) + min(left, 0)
        return self.size - (len(self._piece) - self._at)

    def finish(self) -> Digest:
        """Read to the end, so that everything has been checked; the digest of the tar archive."""
        while self._next():
            pass
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    def check_blob(self) -> None:
        """Read the compressed rest: raises if the blob itself is not what its digest says."""
        self._unpacked.check_blob()

    def _next(self) -> bool:
        """Go to the next piece, if there is one."""
        self._piece, self._at = self._unpacked.piece(), 0
        self.size += len(self._piece)
        self._hash.update(self._piece)
        return bool(self._piece)


class _Unpacked:
    """The pieces of a layer's archive, as the decompressor gives them, within the caps."""

    def __init__(self, inner: Verified, form: str, limits: Limits) -> None:
        self._inner = inner
        self._form = form
        self._limits = limits
        self._new = _maker(form, limits)
        self._current: _Decompressor | None = None
        self._block, self._fed = memoryview(b""), 0
        self._pending = b""
        self._started = False
        self._read_in = 0
        self._size = 0

    def piece(self) -> bytes:
        """At least one byte, or none at the end."""
        if not self._started:
            self._start()
        try:
            data = self._inflate(self._new) if self._new else self._taken()
        except _DAMAGE as error:
            raise MalformedImage(f"the layer's {self._form} data are damaged: {error}") from None
        self._size += len(data)
        self._check_caps()
        return data

    def check_blob(self) -> None:
        while self._inner.read(_BLOCK):
            pass

    def close(self) -> None:
        self._inner.close()

    def _check_caps(self) -> None:
        limits = self._limits
        if self._size > limits.layer:
            raise LimitExceeded(f"the layer is larger than {limits.layer} bytes uncompressed")
        if self._size > limits.ratio_free and self._size > limits.ratio * self._read_in:
            ratio = self._size // max(self._read_in, 1)
            raise LimitExceeded(f"the layer is a decompression bomb: {ratio} times its compressed size")

    def _start(self) -> None:
        self._started = True
        self._pending = self._input()
        found = _form_of(self._pending)
        if found != self._form:
            raise MalformedImage(f"the layer's media type says {self._form}; its bytes are {found}")

    def _input(self) -> bytes:
        """The next few bytes of the blob, which is read in larger blocks."""
        if self._fed >= len(self._block):
            self._block, self._fed = memoryview(self._inner.read(_BLOCK)), 0
        data = bytes(self._block[self._fed : self._fed + _INPUT])
        self._fed += len(data)
        self._read_in += len(data)
        return data

    def _taken(self) -> bytes:
        data, self._pending = self._pending or self._input(), b""
        return data

    def _inflate(self, new: Callable[[], _Decompressor]) -> bytes:
        """Data of this member, or of the next one that has any: a layer may have several."""
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
                    raise MalformedImage(f"the layer's {self._form} data end too early")
            data, self._pending = self._current.decompress(self._pending, _OUTPUT), b""
            if data:
                return data


def _maker(form: str, limits: Limits) -> Callable[[], _Decompressor] | None:
    if form == _GZIP:
        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if form == _ZSTD:
        options = {int(zstd.DecompressionParameter.window_log_max): limits.zstd_window_log}
        return lambda: zstd.ZstdDecompressor(options=options)
    return None


def _form_of(start: bytes) -> str:
    if start.startswith(_GZIP_MAGIC):
        return _GZIP
    if start.startswith(_ZSTD_MAGIC) or (start[1:4] == _SKIPPABLE and start[0] & 0xF0 == _SKIPPABLE_HIGH):
        return _ZSTD
    return _PLAIN
