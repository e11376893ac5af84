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
from buildkit_tasks.host.builder.assignment import assign_nodes
from buildkit_tasks.host.builder.spec import TLS_OPTIONS, NodeSpec

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["NodeWatchdog", "unreachable_nodes", "watch_nodes"]

_TIMEOUT_SECONDS = 5.0
_UNIX_SCHEME = "unix://"
_MAX_MISSES = 3  # in a row, before a node that builds is given up: it may be busy
_FRAME_HEADER_LENGTH, _SETTINGS_FRAME = 9, 4  # RFC 9113, sections 4.1 and 6.5
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0])
_STATUS_LINE_LENGTH = len("HTTP/1.1 200")
_PING_REQUEST = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _DaemonProtocol:
    """What listens at the endpoints of a driver, and how it makes itself known to who sends ``opening``."""

    mismatch: str
    request: bytes
    reply_length: int
    is_expected: Callable[[bytes], bool]


_BUILDKITD = _DaemonProtocol(
    mismatch="no BuildKit's, or wants TLS",
    request=_HTTP2_PREFACE,
    reply_length=_FRAME_HEADER_LENGTH,
    is_expected=lambda reply: reply[3] == _SETTINGS_FRAME and reply[0] == 0,
)
# An engine behind TLS answers a request without it by 400.
_DOCKERD = _DaemonProtocol(
    mismatch="no Docker engine's, or wants TLS, which a docker context has: endpoint=CONTEXT",
    request=_PING_REQUEST,
    reply_length=_STATUS_LINE_LENGTH,
    is_expected=lambda reply: reply.startswith(b"HTTP/1.") and not reply.endswith(b" 400"),
)


def unreachable_nodes(nodes: Sequence[NodeSpec], driver: str) -> dict[str, str]:
    """The nodes at whose tcp endpoint or socket no daemon of the driver's kind lets us in, with the reason.

    Other endpoints are buildx's to ask.
    """
    pingable = [node for node in nodes if _can_ping(node, driver)]
    if not pingable:
        return {}
    protocol = _BUILDKITD if driver == "remote" else _DOCKERD
    with ThreadPoolExecutor(max_workers=len(pingable)) as pool:
        reasons = pool.map(lambda node: _explain_unreachable(node, protocol), pingable)
        return {node.name: reason for node, reason in zip(pingable, reasons, strict=True) if reason}


class NodeWatchdog:
    """Asks the nodes of a build whether they are still there, each time that it is called.

    buildx waits for ever for a node that hangs, or whose network went away: its connection is not closed.
    """

    def __init__(self, nodes: Sequence[NodeSpec], driver: str) -> None:
        self._nodes, self._driver = nodes, driver
        self._misses: dict[str, int] = {}

    def __call__(self) -> BuilderError | None:
        """What ends the build: a node that was silent several times in a row."""
        unreachable = unreachable_nodes(self._nodes, self._driver)
        self._misses = {name: self._misses.get(name, 0) + 1 for name in unreachable}
        lost = [name for name, count in self._misses.items() if count >= _MAX_MISSES]
        return BuilderError("; ".join(f"node {name}: {unreachable[name]}" for name in lost)) if lost else None


def watch_nodes(builder: BuilderSummary, platforms: Sequence[Platform]) -> NodeWatchdog | None:
    """The watch over the nodes that build these platforms; None if none of them can be asked."""
    node_names = {each.node for each in assign_nodes(platforms, builder)}
    nodes = [
        NodeSpec(name=node.name, endpoint=node.endpoint, driver_opts=node.driver_opt)
        for node in builder.nodes
        if node.name in node_names
    ]
    pingable = [node for node in nodes if _can_ping(node, builder.driver)]
    return NodeWatchdog(pingable, builder.driver) if pingable else None


def _can_ping(node: NodeSpec, driver: str) -> bool:
    """An engine at a socket of this machine is known already when a builder is looked at."""
    return node.address is not None or (driver == "remote" and node.endpoint.startswith(_UNIX_SCHEME))


def _open_connection(node: NodeSpec) -> socket.socket:
    if node.address is not None:
        return socket.create_connection(node.address, timeout=_TIMEOUT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_TIMEOUT_SECONDS)
    try:
        connection.connect(node.endpoint.removeprefix(_UNIX_SCHEME))
    except BaseException:
        connection.close()
        raise
    return connection


def _explain_unreachable(node: NodeSpec, protocol: _DaemonProtocol) -> str:
    endpoint = node.endpoint
    try:
        connection = _open_connection(node)
    except TimeoutError:
        return f"{endpoint} does not answer within {_TIMEOUT_SECONDS:g} s"
    except OSError as error:
        return f"nobody listens at {endpoint}: {error.strerror or error}"
    try:
        with connection, _wrap_tls(connection, node, protocol) as stream:
            return (
                ""
                if protocol.is_expected(_read_reply(stream, protocol.reply_length))
                else f"{endpoint} is {protocol.mismatch}"
            )
    except TimeoutError:
        return f"{endpoint} takes a connection and says nothing for {_TIMEOUT_SECONDS:g} s"
    except OSError as error:  # ssl.SSLError is one
        return f"{endpoint} and we do not let each other in: {_tls_error_message(error)}"


@contextlib.contextmanager
def _wrap_tls(
    connection: socket.socket, node: NodeSpec, protocol: _DaemonProtocol
) -> Iterator[socket.socket]:
    """The connection, under TLS if the node's options have material for it."""
    driver_opts = dict(option.split("=", 1) for option in node.driver_opts if "=" in option)
    if not any(name in driver_opts for name in TLS_OPTIONS):
        connection.sendall(protocol.request)  # makes one that waits for TLS hang up at once
        yield connection
        return
    server_name = driver_opts.get("servername") or (node.address or ("",))[0]
    with _create_tls_context(driver_opts).wrap_socket(connection, server_hostname=server_name) as stream:
        # Nothing is sent first: the other side may still refuse our certificate, and its reason would
        # be lost if it hung up on something unread.
        yield stream


def _create_tls_context(driver_opts: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(cafile=driver_opts.get("cacert"))
    context.set_alpn_protocols(["h2"])  # without it gRPC hangs up
    if "cert" in driver_opts:
        context.load_cert_chain(driver_opts["cert"], driver_opts.get("key"))
    return context


def _read_reply(stream: socket.socket, length: int) -> bytes:
    """The first bytes of an answer; zeros for those that did not come before the other side hung up."""
    reply = b""
    with contextlib.suppress(ConnectionResetError):
        while len(reply) < length and (chunk := stream.recv(length - len(reply))):
            reply += chunk
    return reply.ljust(length, b"\0")


def _tls_error_message(error: OSError) -> str:
    """What TLS found: of the certificate that does not hold, or of the alert that the other side sent."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror
    return str(reason or error).replace("_", " ").lower()
