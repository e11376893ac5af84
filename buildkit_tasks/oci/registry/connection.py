"""HTTP connections with a minimum speed, a limit on received data, and a way to abort them.

A socket timeout limits a single read. A server that sends a byte now and then, in headers, body or
trailers, would never reach it, so the average speed must not fall below :data:`MIN_BYTES_PER_SECOND`.
Request bodies are sent in chunks, each of which may take one timeout.
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

MIN_BYTES_PER_SECOND = 4096  # enforced after one timeout
_HEADER_ALLOWANCE = 1 << 20  # bytes that may arrive besides the requested body
_BUFFER_SIZE = 1 << 16
_FIRST_ERROR_STATUS = 400
_CHUNKING_OVERHEAD = 8  # a chunk of one byte takes six: size, CRLF, data, CRLF


class MeteredReader(io.RawIOBase):
    """A socket file that enforces speed and amount; ``timeout`` is the socket's, in seconds."""

    def __init__(self, inner: io.RawIOBase, timeout: float) -> None:
        super().__init__()
        self._inner = inner
        self._timeout = timeout
        self._read_seconds = 0.0
        self._received = 0
        self._max_received = _HEADER_ALLOWANCE

    def allow_body(self, size: int) -> None:
        """Allow this many bytes of a body to be received."""
        self._max_received = max(
            self._max_received, self._received + size * _CHUNKING_OVERHEAD + _HEADER_ALLOWANCE
        )

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        """Read available bytes. Raises TimeoutError if they come too slowly, OSError if they are too many."""
        started = time.monotonic()
        size = self._inner.readinto(buffer)
        self._read_seconds += time.monotonic() - started  # without the time the caller takes
        self._received += size or 0
        if self._read_seconds > self._timeout + self._received / MIN_BYTES_PER_SECOND:
            raise TimeoutError("the server sends too slowly")
        if self._received > self._max_received:
            raise OSError("the server sends more than was requested")
        return size

    def close(self) -> None:
        """Close the socket file, too."""
        self._inner.close()
        super().close()


class _MeteredResponse(HTTPResponse):
    """A response that is read through a :class:`MeteredReader`."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        buffered: Any = self.fp
        self.meter = MeteredReader(buffered.detach(), sock.gettimeout() or float("inf"))
        self.fp = io.BufferedReader(self.meter, _BUFFER_SIZE)
        self._closes_on_error = method in ("PUT", "PATCH")

    def begin(self) -> None:
        """Read the headers; do not reuse the connection after an error response to an upload.

        The server may send it before it has read the whole body, and then closes the connection (RFC 9112,
        section 9.6), so that the next request on it would be lost.
        """
        super().begin()
        self.will_close = self.will_close or (self._closes_on_error and self.status >= _FIRST_ERROR_STATUS)


class _SendTimeoutMixin:
    """Sends bodies with the adapter's send timeout instead of the connect timeout.

    urllib3 uses the connect timeout for the whole request, but a registry may be slow to read a layer.
    """

    response_class: Any = _MeteredResponse
    adapter: MeteredAdapter
    sock: socket.socket | None

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """Connect and send the headers, then set the timeout for the body."""
        super().endheaders(*args, **kwargs)  # type: ignore[misc]
        if self.sock is not None:
            self.adapter.register_socket(self.sock)


class _Connection(_SendTimeoutMixin, HTTPConnection):
    """A connection without TLS."""


class _TLSConnection(_SendTimeoutMixin, HTTPSConnection):
    """A connection with TLS."""


class _PoolMixin:
    """A pool that passes its adapter to the connections."""

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
    """Connections to one server, with one TLS context, which are kept for reuse.

    ``send_timeout`` is the limit for a chunk of a request body, in seconds.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None, send_timeout: float) -> None:
        self._send_timeout = send_timeout
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._aborted = False
        self._tls_kwargs: dict[str, Any] = {} if ssl_context is None else {"ssl_context": ssl_context}
        super().__init__()

    def register_socket(self, sock: socket.socket) -> None:
        """Prepare a socket for sending a body and reading. Raises OSError after :meth:`abort`."""
        with self._lock:
            if self._aborted:
                raise OSError("the connections were aborted")
            self._sockets.add(sock)
        sock.settimeout(self._send_timeout)

    def abort(self) -> None:
        """Shut down all connections, whichever thread uses them."""
        with self._lock:
            self._aborted = True
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):  # already closed
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # SSLSocket.shutdown would end TLS first

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        """Use our TLS context and connections."""
        super().init_poolmanager(connections, maxsize, block=block, **kwargs, **self._tls_kwargs)
        self.poolmanager.pool_classes_by_scheme = self._make_pool_classes()

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> PoolManager:
        """Use our TLS context and connections."""
        manager: PoolManager = super().proxy_manager_for(proxy, **kwargs, **self._tls_kwargs)
        manager.pool_classes_by_scheme = self._make_pool_classes()
        return manager

    def _make_pool_classes(self) -> Any:
        return {
            name: functools.partial(pool_class, adapter=self) for name, pool_class in _POOL_CLASSES.items()
        }

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:
        """Do not add the CA bundle of requests to those of our TLS context."""
        del url, verify, cert
        conn.cert_reqs = "CERT_REQUIRED"
