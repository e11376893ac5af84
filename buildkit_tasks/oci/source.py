"""The interface to an image's bytes, and the only code that checks the digests of blobs.

OCI image specification, "Content Descriptors": a descriptor states a blob's digest and size.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Protocol

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.streams import RawReader

if TYPE_CHECKING:
    from buildkit_tasks.oci.model import Descriptor

__all__ = [
    "Hasher",
    "Source",
    "VerifyingReader",
    "open_verified",
    "read_blob",
]

_BATCH_SIZE = 4 << 20  # bytes; handing over a batch costs about 0.4 ms, the wait for the interpreter's lock
_MAX_PENDING_BATCHES = 3  # limits the memory that a reader takes which is faster than the hashing


class Source(Protocol):
    """Where an image is stored: an image layout, an archive, a registry.

    Neither method checks content. Blobs are read through :func:`read_blob` and :func:`open_verified`,
    which do.
    """

    def root_descriptor(self) -> Descriptor:
        """Return the descriptor of the image: an index or a single manifest."""
        ...

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the blob with this digest. Raise :class:`MalformedImage` if the source does not have it."""
        ...


def read_blob(source: Source, descriptor: Descriptor, limit: int) -> bytes:
    """Return the whole blob after checking its size and digest.

    Raise :class:`LimitExceeded`, without opening it, if the stated size is over ``limit`` bytes, and
    :class:`MalformedImage` if the content is not what the descriptor states.
    """
    if descriptor.size > limit:
        reason = f"{descriptor.digest} claims {descriptor.size} bytes; at most {limit} are read"
        raise LimitExceeded(reason)
    with open_verified(source, descriptor) as stream:
        return stream.read(descriptor.size + 1)


def open_verified(source: Source, descriptor: Descriptor, buffer_size: int = 1 << 18) -> BinaryIO:
    """Open the blob as a buffered :class:`VerifyingReader`; only a stream read to its end is verified."""
    return io.BufferedReader(VerifyingReader(source, descriptor), buffer_size)


class VerifyingReader(RawReader):
    """A blob's stream that checks size and digest at its end. Hashing runs in a thread of its own."""

    _stream: BinaryIO = io.BytesIO()  # for close(), if the source cannot open the blob

    def __init__(self, source: Source, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self._hasher = Hasher(descriptor.digest.algorithm)
        self._stream = source.open(descriptor)
        self._size = 0
        self._is_verified = False

    def read_some(self, size: int) -> bytes:
        """Return at most ``size`` of the next bytes; none at the end, when everything is verified.

        Raise :class:`MalformedImage` at the end unless size and digest are as stated, and as soon as
        there are more bytes than stated.
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
        super().close()

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


class Hasher:
    """A running digest that hashes large amounts of data in a thread of its own, in order.

    hashlib releases the interpreter's lock for large buffers, so that the thread runs in parallel with
    the caller. The caller must not change the bytes it has handed over.
    """

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._executor: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        """Add the next bytes."""
        self._batch.append(data)
        self._batch_size += len(data)
        if self._batch_size >= _BATCH_SIZE:
            self._submit_batch()

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far, in hexadecimal."""
        while self._pending:
            self._pending.popleft().result()
        self._hash_batch(self._batch)
        self._batch, self._batch_size = [], 0
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread, without hashing what is still pending."""
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
