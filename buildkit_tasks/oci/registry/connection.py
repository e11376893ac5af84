"""HTTP connections that cannot be held up, and can be given up: what comes in is counted.

A socket's time-out bounds one silence. A server that drips a byte now and then, in headers, in a body
or in trailers, would never meet it; here it may not be slower than :data:`SLOWEST` on the whole.
What is sent goes out in pieces, none of which may take longer than one time-out.
"""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import threading
import time
import weakref
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    import ssl

    from urllib3 import PoolManager

__all__ = ["SLOWEST", "Adapter", "Meter"]

SLOWEST = 4096  # bytes in a second, after one whole time-out
_HEADERS = 1 << 20  # bytes before anybody has asked for the body
_BUFFER = 1 << 16
_REFUSED = 400  # the first status of a refusal
_OVERHEAD = 8  # a chunked body of one-byte chunks has five more for each


class Meter(io.RawIOBase):
    """A socket's file that counts; ``grace`` is the socket's time-out in seconds."""

    def __init__(self, inner: io.RawIOBase, grace: float) -> None:
        super().__init__()
        self._inner = inner
        self._grace = grace
        self._waited = 0.0
        self._received = 0
        self._allowed = _HEADERS

    def allow(self, size: int) -> None:
        """Let so many bytes of a body come in."""
        self._allowed = max(self._allowed, self._received + size * _OVERHEAD + _HEADERS)

    def readable(self) -> bool:
        """It is for reading alone."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        """Read what is there; raises TimeoutError for a drip, OSError for a flood."""
        started = time.monotonic()
        size = self._inner.readinto(buffer)
        self._waited += time.monotonic() - started  # the reader's own time does not count
        self._received += size or 0
        if self._waited > self._grace + self._received / SLOWEST:
            raise TimeoutError("the server drips")
        if self._received > self._allowed:
            raise OSError("the server sends more than it was asked for")
        return size

    def close(self) -> None:
        """Close the socket's file with it."""
        self._inner.close()
        super().close()


class _Response(HTTPResponse):
    """A response whose socket is read through a meter."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        buffered: Any = self.fp
        self.meter = Meter(buffered.detach(), sock.gettimeout() or float("inf"))
        self.fp = io.BufferedReader(self.meter, _BUFFER)
        self._ends = method in ("PUT", "PATCH")

    def begin(self) -> None:
        """As usual; a refusal of what is sent is the last on its connection.

        It may come before all was read. A server ends such a connection a moment later (RFC 9112,
        section 9.6), and the next request on it would be lost.
        """
        super().begin()
        self.will_close = self.will_close or (self._ends and self.status >= _REFUSED)


class _Sending:
    """A connection whose requests' bodies have the time for a silence, not that for connecting.

    urllib3 sets the latter for all of a request; a registry may take its time over a layer.
    """

    response_class: Any = _Response
    adapter: Adapter
    sock: socket.socket | None

    def endheaders(self, *args: Any, **more: Any) -> None:
        """As usual, which connects; the body comes after it."""
        super().endheaders(*args, **more)  # type: ignore[misc]
        if self.sock is not None:
            self.adapter.note(self.sock)


class _Connection(_Sending, HTTPConnection):
    """Without TLS."""


class _TLSConnection(_Sending, HTTPSConnection):
    """With TLS."""


class _Pooling:
    """A pool whose connections know their adapter."""

    def __init__(self, *args: Any, adapter: Adapter, **more: Any) -> None:
        self._adapter = adapter
        super().__init__(*args, **more)

    def _new_conn(self) -> Any:
        connection = super()._new_conn()  # type: ignore[misc]
        connection.adapter = self._adapter
        return connection


class _Pool(_Pooling, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(_Pooling, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOLS: dict[str, Any] = {"http": _Pool, "https": _TLSPool}


class Adapter(HTTPAdapter):
    """Requests to one server, over connections that are kept, by one TLS context.

    ``idle`` is how many seconds a piece of a body may take to be sent.
    """

    def __init__(self, context: ssl.SSLContext | None, idle: float) -> None:
        self._idle = idle
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._aborted = False
        self._tls: dict[str, Any] = {} if context is None else {"ssl_context": context}
        super().__init__()

    def note(self, sock: socket.socket) -> None:
        """A connection that is about to be sent a body, or to be read; OSError after :meth:`abort`."""
        with self._lock:
            if self._aborted:
                raise OSError("the work was given up")
            self._sockets.add(sock)
        sock.settimeout(self._idle)

    def abort(self) -> None:
        """End every connection under the hands of whoever uses it, in whatever thread."""
        with self._lock:
            self._aborted = True
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):  # closed by now
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # TLS would first stop encrypting

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        """As requests does, with our TLS context and metered connections."""
        super().init_poolmanager(connections, maxsize, block=block, **more, **self._tls)
        self.poolmanager.pool_classes_by_scheme = self._pools()

    def proxy_manager_for(self, proxy: str, **more: Any) -> PoolManager:
        """As requests does, with our TLS context and metered connections."""
        manager: PoolManager = super().proxy_manager_for(proxy, **more, **self._tls)
        manager.pool_classes_by_scheme = self._pools()
        return manager

    def _pools(self) -> Any:
        return {name: functools.partial(pool, adapter=self) for name, pool in _POOLS.items()}

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:
        """Requests would add its own bundle to the context's authorities."""
        del url, verify, cert
        conn.cert_reqs = "CERT_REQUIRED"
