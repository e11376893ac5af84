"""Whether the nodes' daemons are there and let us in, asked in seconds: buildx itself waits 20 for each.

A gRPC server greets whoever connects with its HTTP/2 settings (RFC 9113, section 3.4); a Docker engine, in
which buildx runs BuildKit in a container, answers to a ping (its API's ``/_ping``). One that hangs accepts a
connection, which its kernel does, and says nothing.
"""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.assignment import assign
from buildkit_tasks.host.builder.spec import TLS_OPTIONS, WantedNode

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["Watch", "silent_nodes", "watch_nodes"]

_SECONDS = 5.0
_UNIX = "unix://"
_SILENCES = 3  # in a row, before a node that builds is given up: it may be busy
_FRAME_HEADER, _SETTINGS = 9, 4  # RFC 9113, sections 4.1 and 6.5
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
_STATUS_LINE = len("HTTP/1.1 200")
_PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Daemon:
    """What listens at the endpoints of a driver, and how it makes itself known to who sends ``opening``."""

    words: str
    opening: bytes
    length: int
    known: Callable[[bytes], bool]


_BUILDKIT = _Daemon(
    words="no BuildKit's, or wants TLS",
    opening=_PREFACE,
    length=_FRAME_HEADER,
    known=lambda start: start[3] == _SETTINGS and start[0] == 0,
)
# An engine behind TLS answers a request without it by 400.
_ENGINE = _Daemon(
    words="no Docker engine's, or wants TLS, which a docker context has: endpoint=CONTEXT",
    opening=_PING,
    length=_STATUS_LINE,
    known=lambda start: start.startswith(b"HTTP/1.") and not start.endswith(b" 400"),
)


def silent_nodes(nodes: Sequence[WantedNode], driver: str) -> dict[str, str]:
    """The nodes at whose tcp endpoint or socket no daemon of the driver's kind lets us in, with the reason.

    Other endpoints are buildx's to ask.
    """
    asked = [node for node in nodes if _can_be_asked(node, driver)]
    if not asked:
        return {}
    daemon = _BUILDKIT if driver == "remote" else _ENGINE
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        answers = pool.map(lambda node: _silence(node, daemon), asked)
        return {node.name: words for node, words in zip(asked, answers, strict=True) if words}


class Watch:
    """Asks the nodes of a build whether they are still there, each time that it is called.

    buildx waits for ever for a node that hangs, or whose network went away: its connection is not closed.
    """

    def __init__(self, nodes: Sequence[WantedNode], driver: str) -> None:
        self._nodes, self._driver = nodes, driver
        self._missed: dict[str, int] = {}

    def __call__(self) -> BuilderError | None:
        """What ends the build: a node that was silent several times in a row."""
        silent = silent_nodes(self._nodes, self._driver)
        self._missed = {name: self._missed.get(name, 0) + 1 for name in silent}
        lost = [name for name, times in self._missed.items() if times >= _SILENCES]
        return BuilderError("; ".join(f"node {name}: {silent[name]}" for name in lost)) if lost else None


def watch_nodes(builder: BuilderSummary, platforms: Sequence[Platform]) -> Watch | None:
    """The watch over the nodes that build these platforms; None if none of them can be asked."""
    building = {each.node for each in assign(platforms, builder)}
    nodes = [
        WantedNode(name=node.name, endpoint=node.endpoint, options=node.driver_opt)
        for node in builder.nodes
        if node.name in building
    ]
    asked = [node for node in nodes if _can_be_asked(node, builder.driver)]
    return Watch(asked, builder.driver) if asked else None


def _can_be_asked(node: WantedNode, driver: str) -> bool:
    """An engine at a socket of this machine is known already when a builder is looked at."""
    return node.address is not None or (driver == "remote" and node.endpoint.startswith(_UNIX))


def _connected(node: WantedNode) -> socket.socket:
    if node.address is not None:
        return socket.create_connection(node.address, timeout=_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_SECONDS)
    try:
        connection.connect(node.endpoint.removeprefix(_UNIX))
    except BaseException:
        connection.close()
        raise
    return connection


def _silence(node: WantedNode, daemon: _Daemon) -> str:
    where = node.endpoint
    try:
        connection = _connected(node)
    except TimeoutError:
        return f"{where} does not answer within {_SECONDS:g} s"
    except OSError as error:
        return f"nobody listens at {where}: {error.strerror or error}"
    try:
        with connection, _secured(connection, node, daemon) as stream:
            return "" if daemon.known(_start(stream, daemon.length)) else f"{where} is {daemon.words}"
    except TimeoutError:
        return f"{where} takes a connection and says nothing for {_SECONDS:g} s"
    except OSError as error:  # ssl.SSLError is one
        return f"{where} and we do not let each other in: {_words(error)}"


@contextlib.contextmanager
def _secured(connection: socket.socket, node: WantedNode, daemon: _Daemon) -> Iterator[socket.socket]:
    """The connection, under TLS if the node's options have material for it."""
    given = dict(option.split("=", 1) for option in node.options if "=" in option)
    if not any(name in given for name in TLS_OPTIONS):
        connection.sendall(daemon.opening)  # makes one that waits for TLS hang up at once
        yield connection
        return
    host = given.get("servername") or (node.address or ("",))[0]
    with _context(given).wrap_socket(connection, server_hostname=host) as stream:
        # Nothing is sent first: the other side may still refuse our certificate, and its reason would
        # be lost if it hung up on something unread.
        yield stream


def _context(given: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(cafile=given.get("cacert"))
    context.set_alpn_protocols(["h2"])  # without it gRPC hangs up
    if "cert" in given:
        context.load_cert_chain(given["cert"], given.get("key"))
    return context


def _start(stream: socket.socket, length: int) -> bytes:
    """The first bytes of an answer; zeros for those that did not come before the other side hung up."""
    start = b""
    with contextlib.suppress(ConnectionResetError):
        while len(start) < length and (piece := stream.recv(length - len(start))):
            start += piece
    return start.ljust(length, b"\0")


def _words(error: OSError) -> str:
    """What TLS found: of the certificate that does not hold, or of the alert that the other side sent."""
    found = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror
    return str(found or error).replace("_", " ").lower()
