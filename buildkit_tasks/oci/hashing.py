"""Hash what passes by on another core: a layer is read at the speed of its decompression."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Hasher"]

_BATCH = 4 << 20  # bytes: handing over costs some 0.4 ms, the wait for the interpreter's lock
_AHEAD = 3  # batches that may wait, so that a fast reader does not fill the memory


class Hasher:
    """A running digest. What is given is hashed in its order, large amounts in a thread of its own.

    hashlib gives up the interpreter's lock for large buffers, so that this truly runs beside the
    caller. Whoever gives it bytes must not change them afterwards.
    """

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        self._batch: list[bytes] = []
        self._size = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._batch.append(data)
        self._size += len(data)
        if self._size >= _BATCH:
            self._hand_over()

    def hexdigest(self) -> str:
        """The digest of everything so far, in hex."""
        while self._pending:
            self._pending.popleft().result()
        self._consume(self._batch)
        self._batch, self._size = [], 0
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread; what it has not hashed by then is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _hand_over(self) -> None:
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1)
        self._pending.append(self._pool.submit(self._consume, self._batch))
        self._batch, self._size = [], 0
        if len(self._pending) > _AHEAD:
            self._pending.popleft().result()

    def _consume(self, batch: list[bytes]) -> None:
        for data in batch:
            self._hash.update(data)
