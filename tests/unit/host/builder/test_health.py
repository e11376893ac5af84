"""Check the daemons of nodes over real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.builder import health
from buildkit_tasks.host.builder.health import NodeWatchdog, unreachable_nodes, watch_nodes
from buildkit_tasks.host.builder.spec import NodeSpec
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from tests.support.registry.certificates import Certificate, make_certificate, sign

SETTINGS_FRAME = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0])  # as a gRPC server sends it
TIMEOUT = 0.5  # seconds

Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def run_server(handler: Handler | None, tls_context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Run a server and yield its endpoint; without ``handle`` it never accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            while handler is not None and not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        stream = (
                            tls_context.wrap_socket(connection, server_side=True)
                            if tls_context
                            else connection
                        )
                        with stream:
                            handler(stream)

        thread = threading.Thread(target=serve)
        server.settimeout(0.1)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def send_settings(stream: socket.socket) -> None:
    for byte in SETTINGS_FRAME:  # in many segments
        stream.sendall(bytes([byte]))
    stream.recv(100)


def node(endpoint: str, name: str = "a", driver_opts: tuple[str, ...] = ()) -> NodeSpec:
    return NodeSpec(name=name, endpoint=endpoint, driver_opts=driver_opts)


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_TIMEOUT_SECONDS", TIMEOUT)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def mutual_tls(certificate: Certificate) -> ssl.SSLContext:
    """Return the context of a server that requires a client certificate."""
    tls_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate.authority))
    tls_context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # set since Python 3.13; Go ignores key usage
    tls_context.verify_mode = ssl.CERT_REQUIRED
    tls_context.load_cert_chain(certificate.certificate, certificate.key)
    return tls_context


def tls_driver_opts(certificate: Certificate, **other: Path) -> tuple[str, ...]:
    files = {
        "cacert": certificate.authority,
        "cert": certificate.certificate,
        "key": certificate.key,
        **other,
    }
    return tuple(f"{name}={path}" for name, path in files.items())


def check_nodes(*nodes: NodeSpec) -> dict[str, str]:
    return unreachable_nodes(nodes, "remote")


def test_buildkit_responds() -> None:
    with run_server(send_settings) as endpoint:
        assert check_nodes(node(endpoint)) == {}


def test_connection_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert check_nodes(node(f"tcp://127.0.0.1:{port}")) == {
        "a": f"nothing listens at tcp://127.0.0.1:{port}: Connection refused"
    }


def test_daemon_hangs() -> None:
    with run_server(None) as endpoint:
        assert check_nodes(node(endpoint)) == {
            "a": f"{endpoint} accepts connections but sends nothing within {TIMEOUT:g} s"
        }


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46xxx"]
)
def test_not_buildkit(reply: bytes) -> None:
    def handler(stream: socket.socket) -> None:
        stream.recv(100)
        stream.sendall(reply)

    with run_server(handler) as endpoint:
        message = f"{endpoint} is not a BuildKit daemon, or requires TLS"
        assert check_nodes(node(endpoint)) == {"a": message}


@pytest.mark.parametrize(
    ("reply", "is_engine"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nOK", True),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", True),
        (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", False),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", False),
        (b"HTTP", False),
        (b"", False),
    ],
)
def test_ping_engine(reply: bytes, *, is_engine: bool) -> None:
    requests = []

    def handler(stream: socket.socket) -> None:
        requests.append(stream.recv(100))
        stream.sendall(reply)

    with run_server(handler) as endpoint:
        reasons = unreachable_nodes([node(endpoint)], "docker-container")
    message = "is not a Docker engine, or requires TLS, which needs a docker context: endpoint=CONTEXT"
    assert reasons == ({} if is_engine else {"a": f"{endpoint} {message}"})
    assert requests[0].startswith(b"GET /_ping HTTP/1.1\r\n")


def test_nodes_are_checked_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_TIMEOUT_SECONDS", 60.0)
    together = threading.Barrier(8)

    def respond_together(stream: socket.socket) -> None:
        together.wait(60)
        send_settings(stream)

    with contextlib.ExitStack() as servers:
        endpoints = [servers.enter_context(run_server(respond_together)) for _ in range(8)]
        assert check_nodes(*(node(endpoint, f"n{number}") for number, endpoint in enumerate(endpoints))) == {}


def test_other_endpoints_are_not_checked() -> None:
    assert check_nodes(*map(node, ("ssh://me@host", "docker-container://x", "context", ""))) == {}


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    endpoint = f"unix://{path}"
    assert check_nodes(node(endpoint)) == {"a": f"nothing listens at {endpoint}: No such file or directory"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept_once() -> None:
            # The client closes the connection before all is sent, as in `listening`.
            with server.accept()[0] as stream, contextlib.suppress(OSError):
                send_settings(stream)

        thread = threading.Thread(target=accept_once)
        thread.start()
        assert check_nodes(node(endpoint)) == {}
        thread.join()
        assert check_nodes(node(endpoint)) == {
            "a": f"{endpoint} accepts connections but sends nothing within {TIMEOUT:g} s"
        }
    assert check_nodes(node(endpoint)) == {"a": f"nothing listens at {endpoint}: Connection refused"}


def test_unknown_host_name() -> None:
    (reason,) = check_nodes(node("tcp://nowhere.invalid:1")).values()
    assert "nothing listens at tcp://nowhere.invalid:1" in reason


def test_tls(certificate: Certificate) -> None:
    with run_server(send_settings, mutual_tls(certificate)) as endpoint:
        assert check_nodes(node(endpoint, driver_opts=tls_driver_opts(certificate))) == {}


def test_tls_server_name(tmp_path: Path) -> None:
    certificate_of_name = make_certificate(tmp_path, names="DNS:builder.example.org")
    with run_server(send_settings, mutual_tls(certificate_of_name)) as endpoint:
        (reason,) = check_nodes(node(endpoint, driver_opts=tls_driver_opts(certificate_of_name))).values()
        assert "ip address mismatch" in reason
        with_name = (*tls_driver_opts(certificate_of_name), "servername=builder.example.org")
        assert check_nodes(node(endpoint, driver_opts=with_name)) == {}


def test_wrong_certificates(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    expired = sign(tmp_path / "old", certificate.authority, expired=True)
    with run_server(send_settings, mutual_tls(certificate)) as endpoint:

        def reason(*driver_opts: str) -> str:
            (text,) = check_nodes(node(endpoint, driver_opts=driver_opts)).values()
            return text

        assert "certificate" in reason(*tls_driver_opts(certificate, cacert=other.authority))
        assert "unknown ca" in reason(*tls_driver_opts(other, cacert=certificate.authority))
        assert "expired" in reason(*tls_driver_opts(expired))
        assert "certificate required" in reason(f"cacert={certificate.authority}")


def test_unreadable_certificates(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no certificate", encoding="utf-8")
    with run_server(send_settings, mutual_tls(certificate)) as endpoint:
        assert check_nodes(node(endpoint, driver_opts=tls_driver_opts(certificate, cert=tmp_path / "x")))
        assert check_nodes(node(endpoint, driver_opts=tls_driver_opts(certificate, cacert=tmp_path / "none")))


def test_watchdog_after_three_misses() -> None:
    with run_server(None) as hanging:
        watchdog = NodeWatchdog([node(hanging, "b")], "remote")
        assert watchdog() is None
        assert watchdog() is None
        error = watchdog()
    assert error is not None
    assert (error.exit_code, error.message.startswith("node b: tcp://")) == (3, True)


def test_watchdog_counts_misses_in_a_row() -> None:
    responses = iter([False, False, True, False, False, False])

    def handler(stream: socket.socket) -> None:
        if next(responses):
            send_settings(stream)

    with run_server(handler) as endpoint:
        watchdog = NodeWatchdog([node(endpoint)], "remote")
        assert [watchdog() is None for _ in range(6)] == [True] * 5 + [False]


def test_watch_nodes() -> None:
    nodes = tuple(
        NodeSummary(name=name, endpoint=endpoint, platforms=(platform,))
        for name, endpoint, platform in (
            ("a", "tcp://127.0.0.1:1", "linux/amd64"),
            ("b", "ssh://me@host", "linux/arm64"),
        )
    )
    builder = BuilderSummary(name="m", driver="remote", nodes=nodes)
    assert watch_nodes(builder, parse_platforms(["linux/arm64"])) is None
    assert watch_nodes(builder, parse_platforms(["linux/amd64"])) is not None
