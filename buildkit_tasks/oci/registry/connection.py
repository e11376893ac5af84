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

__all__ = ["MIN_BYTES_PER_SECOND", "MeteredAdapter", "MeteredReader"]

MIN_BYTES_PER_SECOND = 4096  # bytes in a second, after one whole time-out
_HEADER_ALLOWANCE = 1 << 20  # bytes before anybody has asked for the body
_BUFFER_SIZE = 1 << 16
_FIRST_ERROR_STATUS = 400  # the first status of a refusal
_CHUNKING_OVERHEAD = 8  # a chunked body of one-byte chunks has five more for each


class MeteredReader(io.RawIOBase):
    """A socket's file that counts; ``grace`` is the socket's time-out in seconds."""

    def __init__(self, inner: io.RawIOBase, timeout: float) -> None:
        super().__init__()
        self._inner = inner
        self._timeout = timeout
        self._read_seconds = 0.0
        self._received = 0
        self._max_received = _HEADER_ALLOWANCE

    def allow_body(self, size: int) -> None:
        """Let so many bytes of a body come in."""
        self._max_received = max(
            self._max_received, self._received + size * _CHUNKING_OVERHEAD + _HEADER_ALLOWANCE
        )

    def readable(self) -> bool:
        """It is for reading alone."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        """Read what is there; raises TimeoutError for a drip, OSError for a flood."""
        started = time.monotonic()
        size = self._inner.readinto(buffer)
        self._read_seconds += time.monotonic() - started  # the reader's own time does not count
        self._received += size or 0
        if self._read_seconds > self._timeout + self._received / MIN_BYTES_PER_SECOND:
            raise TimeoutError("the server drips")
        if self._received > self._max_received:
            raise OSError("the server sends more than it was asked for")
        return size

    def close(self) -> None:
        """Close the socket's file with it."""
        self._inner.close()
        super().close()


class _MeteredResponse(HTTPResponse):
    """A response whose socket is read through a meter."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        buffered: Any = self.fp
        self.meter = MeteredReader(buffered.detach(), sock.gettimeout() or float("inf"))
        self.fp = io.BufferedReader(self.meter, _BUFFER_SIZE)
        self._closes_on_error = method in ("PUT", "PATCH")

    def begin(self) -> None:
        """As usual; a refusal of what is sent is the last on its connection.

        It may come before all was read. A server ends such a connection a moment later (RFC 9112,
        section 9.6), and the next request on it would be lost.
        """
        super().begin()
        self.will_close = self.will_close or (self._closes_on_error and self.status >= _FIRST_ERROR_STATUS)


class _SendTimeoutMixin:
    """A connection whose requests' bodies have the time for a silence, not that for connecting.

    urllib3 sets the latter for all of a request; a registry may take its time over a layer.
    """

    response_class: Any = _MeteredResponse
    adapter: MeteredAdapter
    sock: socket.socket | None

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """As usual, which connects; the body comes after it."""
        super().endheaders(*args, **kwargs)  # type: ignore[misc]
        if self.sock is not None:
            self.adapter.register_socket(self.sock)


class _Connection(_SendTimeoutMixin, HTTPConnection):
    """Without TLS."""


class _TLSConnection(_SendTimeoutMixin, HTTPSConnection):
    """With TLS."""


class _PoolMixin:
    """A pool whose connections know their adapter."""

    def __init__(self, *args: Any, adapter: MeteredAdapter, **kwargs: Any) -> None:
        self._adapter = adapter
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> Any:
        connection = super()._new_conn()  # type: ignore[misc]
        connection.adapter = self._adapter
        return connection


class _Pool(_PoolMixin, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(_PoolMixin, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOL_CLASSES: dict[str, Any] = {"http": _Pool, "https": _TLSPool}


class MeteredAdapter(HTTPAdapter):
    """Requests to one server, over connections that are kept, by one TLS context.

    ``idle`` is how many seconds a piece of a body may take to be sent.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None, send_timeout: float) -> None:
        self._send_timeout = send_timeout
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._aborted = False
        self._tls_kwargs: dict[str, Any] = {} if ssl_context is None else {"ssl_context": ssl_context}
        super().__init__()

    def register_socket(self, sock: socket.socket) -> None:
        """A connection that is about to be sent a body, or to be read; OSError after :meth:`abort`."""
        with self._lock:
            if self._aborted:
                raise OSError("the work was given up")
            self._sockets.add(sock)
        sock.settimeout(self._send_timeout)

    def abort(self) -> None:
        """End every connection under the hands of whoever uses it, in whatever thread."""
        with self._lock:
            self._aborted = True
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):  # closed by now
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # TLS would first stop encrypting

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        """As requests does, with our TLS context and metered connections."""
        super().init_poolmanager(connections, maxsize, block=block, **kwargs, **self._tls_kwargs)
        self.poolmanager.pool_classes_by_scheme = self._make_pool_classes()

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> PoolManager:
        """As requests does, with our TLS context and metered connections."""
        manager: PoolManager = super().proxy_manager_for(proxy, **kwargs, **self._tls_kwargs)
        manager.pool_classes_by_scheme = self._make_pool_classes()
        return manager

    def _make_pool_classes(self) -> Any:
        return {
            name: functools.partial(pool_class, adapter=self) for name, pool_class in _POOL_CLASSES.items()
        }

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:
        """Requests would add its own bundle to the context's authorities."""
        del url, verify, cert
        conn.cert_reqs = "CERT_REQUIRED"
