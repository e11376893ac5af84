"""Layers uncompressed: plain, gzip and zstd, within caps that stop a decompression bomb."""

from __future__ import annotations

import hashlib
import io
import sys
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from isal import igzip_lib

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.blobs import Source, open_verified
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
_INPUT = 1 << 16  # small: each of many tiny gzip members hands the rest of it back
_BUFFER = 1 << 20


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
    return LayerStream(_Uncompressed(open_verified(source, layer, _INPUT), form, algorithm, limits), _BUFFER)


class LayerStream(io.BufferedReader):
    """An uncompressed layer; :meth:`finish` reads what is left and gives its diff_id."""

    raw: _Uncompressed

    def finish(self) -> Digest:
        """Read to the end, so that everything has been checked; the digest of the tar archive."""
        while self.read(_BUFFER):
            pass
        return self.raw.diff_id

    def check_blob(self) -> None:
        """Read the compressed rest: raises if the blob itself is not what its digest says."""
        self.raw.check_blob()


class _Uncompressed(io.RawIOBase):
    def __init__(self, inner: BinaryIO, form: str, algorithm: str, limits: Limits) -> None:
        super().__init__()
        self._inner = inner
        self._form = form
        self._limits = limits
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._new = _maker(form, limits)
        self._current: _Decompressor | None = None
        self._pending = b""
        self._started = False
        self._read_in = 0
        self._size = 0

    @property
    def diff_id(self) -> Digest:
        """The digest of what has been read; of the whole layer once it was read to its end."""
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    @property
    def size(self) -> int:
        """How many uncompressed bytes have been read."""
        return self._size

    def check_blob(self) -> None:
        while self._inner.read(_BUFFER):
            pass

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._some(len(buffer))
        self._hash.update(data)
        self._size += len(data)
        self._check_caps()
        buffer[: len(data)] = data
        return len(data)

    def _check_caps(self) -> None:
        limits = self._limits
        if self._size > limits.layer:
            raise LimitExceeded(f"the layer is larger than {limits.layer} bytes uncompressed")
        if self._size > limits.ratio_free and self._size > limits.ratio * self._read_in:
            ratio = self._size // max(self._read_in, 1)
            raise LimitExceeded(f"the layer is a decompression bomb: {ratio} times its compressed size")

    def _some(self, wanted: int) -> bytes:
        """At least one byte, or none at the end."""
        if not self._started:
            self._start()
        if self._new is None:
            return self._pending_or_input(wanted)
        try:
            return self._inflate(self._new, wanted)
        except _DAMAGE as error:
            raise MalformedImage(f"the layer's {self._form} data are damaged: {error}") from None

    def _start(self) -> None:
        self._started = True
        self._pending = self._input()
        found = _form_of(self._pending)
        if found != self._form:
            raise MalformedImage(f"the layer's media type says {self._form}; its bytes are {found}")

    def _input(self) -> bytes:
        data = self._inner.read(_INPUT)
        self._read_in += len(data)
        return data

    def _pending_or_input(self, wanted: int) -> bytes:
        data = self._pending or self._input()
        self._pending = data[wanted:]
        return data[:wanted]

    def _inflate(self, new: Callable[[], _Decompressor], wanted: int) -> bytes:
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
            data, self._pending = self._current.decompress(self._pending, wanted), b""
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
