"""The two-method interface to an image's bytes, and the one place where digests are checked."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Protocol

from buildkit_tasks.errors import LimitExceeded, MalformedImage

if TYPE_CHECKING:
    from buildkit_tasks.oci.model import Descriptor

__all__ = [
    "Hasher",
    "Source",
    "VerifyingReader",
    "open_verified",
    "read_blob",
]


class Source(Protocol):
    """Somewhere an image lies: a layout, an archive, a registry.

    Neither method checks content; everything is read through :func:`read_blob` and
    :func:`open_verified`, which do.
    """

    def root_descriptor(self) -> Descriptor:
        """The descriptor of the image: an index, or a single manifest."""
        ...

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The bytes that are stored under this digest; :class:`MalformedImage` if none are."""
        ...


def read_blob(source: Source, descriptor: Descriptor, limit: int) -> bytes:
    """The whole blob, once its size and digest hold.

    Raises :class:`LimitExceeded` before reading anything if it claims more than ``limit`` bytes,
    :class:`MalformedImage` if it is not what the descriptor says.
    """
    if descriptor.size > limit:
        reason = f"{descriptor.digest} claims {descriptor.size} bytes; at most {limit} are read"
        raise LimitExceeded(reason)
    with open_verified(source, descriptor) as stream:
        return stream.read(descriptor.size + 1)


def open_verified(source: Source, descriptor: Descriptor, buffer_size: int = 1 << 18) -> BinaryIO:
    """Stream the blob; only a stream that was read to its end has been checked.

    Raises :class:`MalformedImage` there unless size and digest hold, and as soon as it is too long.
    """
    return io.BufferedReader(_RawBlobStream(VerifyingReader(source, descriptor)), buffer_size)


class VerifyingReader:
    """A blob in pieces, counted and hashed as they go by; the hashing runs beside the reader."""

    def __init__(self, source: Source, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self._stream = source.open(descriptor)
        self._hasher = Hasher(descriptor.digest.algorithm)
        self._size = 0
        self._is_verified = False

    def read(self, size: int) -> bytes:
        """At most ``size`` of the next bytes; none at the end, where everything has been checked.

        Raises :class:`MalformedImage` as :func:`open_verified` says.
        """
        data = self._read_stream(size)
        self._hasher.update(data)
        self._size += len(data)
        if self._size > self.descriptor.size or not data:
            self._verify_content()
        return data

    def close(self) -> None:
        """Close the source's stream."""
        self._hasher.close()
        self._stream.close()

    def _read_stream(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            reason = error.strerror or error
            raise MalformedImage(f"{self.descriptor.digest} cannot be read: {reason}") from error

    def _verify_content(self) -> None:
        if self._is_verified:
            return
        expected, digest = self.descriptor, self.descriptor.digest
        if self._size > expected.size:
            raise MalformedImage(f"{digest} is longer than the {expected.size} bytes that are stated")
        if self._size < expected.size:
            raise MalformedImage(f"{digest} has {self._size} bytes; {expected.size} are stated")
        actual = self._hasher.hexdigest()
        if actual != digest.hex:
            raise MalformedImage(f"{digest} holds other bytes: they hash to {actual}")
        self._is_verified = True


class _RawBlobStream(io.RawIOBase):
    """The same as one of Python's own streams."""

    def __init__(self, reader: VerifyingReader) -> None:
        super().__init__()
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._reader.close()
        super().close()


_BATCH_SIZE = 4 << 20  # bytes: handing over costs some 0.4 ms, the wait for the interpreter's lock


_MAX_PENDING_BATCHES = 3  # batches that may wait, so that a fast reader does not fill the memory


class Hasher:
    """A running digest. What is given is hashed in its order, large amounts in a thread of its own.

    hashlib gives up the interpreter's lock for large buffers, so that this truly runs beside the
    caller. Whoever gives it bytes must not change them afterwards.
    """

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._executor: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._batch.append(data)
        self._batch_size += len(data)
        if self._batch_size >= _BATCH_SIZE:
            self._submit_batch()

    def hexdigest(self) -> str:
        """The digest of everything so far, in hex."""
        while self._pending:
            self._pending.popleft().result()
        self._hash_batch(self._batch)
        self._batch, self._batch_size = [], 0
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread; what it has not hashed by then is dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def _submit_batch(self) -> None:
        self._executor = self._executor or ThreadPoolExecutor(max_workers=1)
        self._pending.append(self._executor.submit(self._hash_batch, self._batch))
        self._batch, self._batch_size = [], 0
        if len(self._pending) > _MAX_PENDING_BATCHES:
            self._pending.popleft().result()

    def _hash_batch(self, batch: list[bytes]) -> None:
        for data in batch:
            self._hash.update(data)
