"""Check within seconds that the daemons of nodes respond; buildx itself waits 20 seconds for each.

A gRPC server such as buildkitd sends its HTTP/2 SETTINGS to every client (RFC 9113, section 3.4). A Docker
engine, in which buildx runs BuildKit in a container, responds to ``/_ping`` of its API. A daemon that hangs
does neither, although its kernel still accepts connections.
"""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.assignment import assign_nodes
from buildkit_tasks.host.builder.spec import TLS_OPTIONS, NodeSpec, parse_driver_opts

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["NodeWatchdog", "format_reasons", "unreachable_nodes", "watch_nodes"]

_TIMEOUT_SECONDS = 5.0
_UNIX_SCHEME = "unix://"
_MAX_MISSES = 3  # failed checks in a row before a node is considered lost: it may be busy building
_FRAME_HEADER_LENGTH, _SETTINGS_FRAME = 9, 4  # RFC 9113, sections 4.1 and 6.5
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0])
_STATUS_LINE_LENGTH = len("HTTP/1.1 200")
_PING_REQUEST = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _DaemonProtocol:
    """The request that a driver's daemons answer, and how to recognise their reply."""

    mismatch: str
    request: bytes
    reply_length: int
    is_expected: Callable[[bytes], bool]


_BUILDKITD = _DaemonProtocol(
    mismatch="is not a BuildKit daemon, or requires TLS",
    request=_HTTP2_PREFACE,
    reply_length=_FRAME_HEADER_LENGTH,
    is_expected=lambda reply: reply[3] == _SETTINGS_FRAME and reply[0] == 0,
)
# An engine that requires TLS answers a plain request with status 400.
_DOCKERD = _DaemonProtocol(
    mismatch="is not a Docker engine, or requires TLS, which needs a docker context: endpoint=CONTEXT",
    request=_PING_REQUEST,
    reply_length=_STATUS_LINE_LENGTH,
    is_expected=lambda reply: reply.startswith(b"HTTP/1.") and not reply.endswith(b" 400"),
)


def unreachable_nodes(nodes: Sequence[NodeSpec], driver: str) -> dict[str, str]:
    """Return the nodes whose daemon does not respond or refuses the connection, with the reason.

    Only tcp and unix endpoints are checked; other kinds are left to buildx.
    """
    pingable = [node for node in nodes if _can_ping(node, driver)]
    if not pingable:
        return {}
    protocol = _BUILDKITD if driver == "remote" else _DOCKERD
    with ThreadPoolExecutor(max_workers=len(pingable)) as pool:
        reasons = pool.map(lambda node: _explain_unreachable(node, protocol), pingable)
        return {node.name: reason for node, reason in zip(pingable, reasons, strict=True) if reason}


def format_reasons(reasons: Mapping[str, str]) -> str:
    """Return ``node a: reason; node b: reason``."""
    return "; ".join(f"node {name}: {reason}" for name, reason in reasons.items())


class NodeWatchdog:
    """Checks on each call whether the nodes of a build still respond.

    buildx waits forever for a node that hangs or loses its network, because the connection stays open.
    """

    def __init__(self, nodes: Sequence[NodeSpec], driver: str) -> None:
        self._nodes, self._driver = nodes, driver
        self._misses: dict[str, int] = {}

    def __call__(self) -> BuilderError | None:
        """Return the error that ends the build if a node has failed several checks in a row."""
        unreachable = unreachable_nodes(self._nodes, self._driver)
        self._misses = {name: self._misses.get(name, 0) + 1 for name in unreachable}
        lost = {name: unreachable[name] for name, count in self._misses.items() if count >= _MAX_MISSES}
        return BuilderError(format_reasons(lost)) if lost else None


def watch_nodes(builder: BuilderSummary, platforms: Sequence[Platform]) -> NodeWatchdog | None:
    """Return a watchdog for the nodes that build these platforms, or None if none can be checked."""
    node_names = {each.node for each in assign_nodes(platforms, builder)}
    nodes = [
        NodeSpec(name=node.name, endpoint=node.endpoint, driver_opts=node.driver_opt)
        for node in builder.nodes
        if node.name in node_names
    ]
    pingable = [node for node in nodes if _can_ping(node, builder.driver)]
    return NodeWatchdog(pingable, builder.driver) if pingable else None


def _can_ping(node: NodeSpec, driver: str) -> bool:
    """Return True for tcp endpoints and unix sockets of BuildKit; the local engine was checked before."""
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
        return f"nothing listens at {endpoint}: {error.strerror or error}"
    try:
        with connection, _wrap_tls(connection, node, protocol) as stream:
            reply = _read_reply(stream, protocol.reply_length)
    except TimeoutError:
        return f"{endpoint} accepts connections but sends nothing within {_TIMEOUT_SECONDS:g} s"
    except OSError as error:  # ssl.SSLError is one
        return f"the connection to {endpoint} failed: {_tls_error_message(error)}"
    return "" if protocol.is_expected(reply) else f"{endpoint} {protocol.mismatch}"


@contextlib.contextmanager
def _wrap_tls(
    connection: socket.socket, node: NodeSpec, protocol: _DaemonProtocol
) -> Iterator[socket.socket]:
    """Use TLS if the node has TLS options; otherwise send the protocol's request."""
    driver_opts = parse_driver_opts(node.driver_opts)
    if not any(name in driver_opts for name in TLS_OPTIONS):
        connection.sendall(protocol.request)  # a server that expects TLS then closes the connection
        yield connection
        return
    server_name = driver_opts.get("servername") or (node.address or ("",))[0]
    with _create_tls_context(driver_opts).wrap_socket(connection, server_hostname=server_name) as stream:
        # No request: the server may still reject our certificate, and its alert would be lost if it
        # closed the connection with unread data.
        yield stream


def _create_tls_context(driver_opts: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(cafile=driver_opts.get("cacert"))
    # Set since Python 3.13; BuildKit accepts CA certificates without the extensions that it requires.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])  # gRPC servers require it
    if "cert" in driver_opts:
        context.load_cert_chain(driver_opts["cert"], driver_opts.get("key"))
    return context


def _read_reply(stream: socket.socket, length: int) -> bytes:
    """Return the first bytes of the reply, padded with zeros if the connection was closed before."""
    reply = b""
    with contextlib.suppress(ConnectionResetError):
        while len(reply) < length and (chunk := stream.recv(length - len(reply))):
            reply += chunk
    return reply.ljust(length, b"\0")


def _tls_error_message(error: OSError) -> str:
    """Return why the certificate is invalid, the alert that the server sent, or the system error."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror
    return str(reason or error).replace("_", " ").lower()
