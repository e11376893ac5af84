"""Whether a node's BuildKit is there: asked of real sockets on the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from buildkit_tasks.host.builder import health as reaching
from buildkit_tasks.host.builder.health import NodeWatchdog, unreachable_nodes, watch_nodes
from buildkit_tasks.host.builder.spec import NodeSpec
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from tests.support.registry.certificates import Certificate, make_certificate, sign

GREETING = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0])  # a settings frame, as gRPC sends it
SOON = 0.5  # seconds

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(talk: Talk | None, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose connections talk; gives its endpoint. Without ``talk`` nobody takes them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            while talk is not None and not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        stream = context.wrap_socket(connection, server_side=True) if context else connection
                        with stream:
                            talk(stream)

        thread = threading.Thread(target=serve)
        server.settimeout(0.1)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def greet(stream: socket.socket) -> None:
    for byte in GREETING:  # in pieces: a stream has no messages
        stream.sendall(bytes([byte]))
    stream.recv(100)


def node(endpoint: str, name: str = "a", options: tuple[str, ...] = ()) -> NodeSpec:
    return NodeSpec(name=name, endpoint=endpoint, driver_opts=options)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "_TIMEOUT_SECONDS", SOON)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def secured(certificate: Certificate) -> ssl.SSLContext:
    """A server that asks for a client's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate.authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def options(certificate: Certificate, **other: Path) -> tuple[str, ...]:
    files = {
        "cacert": certificate.authority,
        "cert": certificate.certificate,
        "key": certificate.key,
        **other,
    }
    return tuple(f"{name}={path}" for name, path in files.items())


def silent(nodes: Sequence[NodeSpec]) -> dict[str, str]:
    """Those at which no BuildKit answers."""
    return unreachable_nodes(nodes, "remote")


def test_a_daemon_that_greets_is_there() -> None:
    with listening(greet) as endpoint:
        assert silent([node(endpoint)]) == {}


def test_where_nobody_listens_it_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    assert silent([node(f"tcp://127.0.0.1:{port}")]) == {
        "a": f"nobody listens at tcp://127.0.0.1:{port}: Connection refused"
    }
    assert time.monotonic() - started < SOON


def test_a_daemon_that_hangs_takes_a_connection_and_says_nothing() -> None:
    with listening(None) as endpoint:
        assert silent([node(endpoint)]) == {
            "a": f"{endpoint} takes a connection and says nothing for {SOON:g} s"
        }


@pytest.mark.parametrize(
    "words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46xxx"]
)
def test_what_is_no_buildkit_is_told_from_one(words: bytes) -> None:
    def talk(stream: socket.socket) -> None:
        stream.recv(100)
        stream.sendall(words)

    with listening(talk) as endpoint:
        assert silent([node(endpoint)]) == {"a": f"{endpoint} is no BuildKit's, or wants TLS"}


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nOK", True),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", True),
        (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", False),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", False),
        (b"HTTP", False),
        (b"", False),
    ],
)
def test_an_engine_of_a_container_answers_a_ping(words: bytes, *, there: bool) -> None:
    asked = []

    def talk(stream: socket.socket) -> None:
        asked.append(stream.recv(100))
        stream.sendall(words)

    with listening(talk) as endpoint:
        found = unreachable_nodes([node(endpoint)], "docker-container")
        told = f"{endpoint} is no Docker engine's, or wants TLS, which a docker context has: endpoint=CONTEXT"
    assert found == ({} if there else {"a": told})
    assert asked[0].startswith(b"GET /_ping HTTP/1.1\r\n")


def test_many_are_asked_at_once() -> None:
    with listening(greet) as good, listening(None) as bad:
        started = time.monotonic()
        found = silent([node(good, "good"), *(node(bad, f"bad{number}") for number in range(8))])
        assert time.monotonic() - started < 3 * SOON
    assert sorted(found) == [f"bad{number}" for number in range(8)]


def test_endpoints_without_an_address_are_buildxs_to_ask() -> None:
    assert silent([node("ssh://me@host"), node("docker-container://x"), node("context"), node("")]) == {}


def test_a_socket_of_this_machine_is_asked_as_well(tmp_path: Path) -> None:
    path = tmp_path / "s"
    endpoint = f"unix://{path}"
    assert silent([node(endpoint)]) == {"a": f"nobody listens at {endpoint}: No such file or directory"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def take() -> None:
            # Whoever has read enough hangs up, as in `listening`.
            with server.accept()[0] as stream, contextlib.suppress(OSError):
                greet(stream)

        thread = threading.Thread(target=take)
        thread.start()
        assert silent([node(endpoint)]) == {}
        thread.join()
        assert silent([node(endpoint)]) == {
            "a": f"{endpoint} takes a connection and says nothing for {SOON:g} s"
        }
    assert silent([node(endpoint)]) == {"a": f"nobody listens at {endpoint}: Connection refused"}


def test_a_name_that_nobody_knows_is_silent() -> None:
    (words,) = silent([node("tcp://nowhere.invalid:1")]).values()
    assert "nobody listens at tcp://nowhere.invalid:1" in words


def test_with_the_right_certificates_they_let_each_other_in(certificate: Certificate) -> None:
    with listening(greet, secured(certificate)) as endpoint:
        assert silent([node(endpoint, options=options(certificate))]) == {}


def test_a_server_by_another_name_is_known_by_the_one_that_is_given(tmp_path: Path) -> None:
    named = make_certificate(tmp_path, names="DNS:builder.example.org")
    with listening(greet, secured(named)) as endpoint:
        (words,) = silent([node(endpoint, options=options(named))]).values()
        assert "ip address mismatch" in words
        given = (*options(named), "servername=builder.example.org")
        assert silent([node(endpoint, options=given)]) == {}


def test_every_wrong_certificate_is_told_by_its_fault(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    old = sign(tmp_path / "old", certificate.authority, days=-1)
    with listening(greet, secured(certificate)) as endpoint:

        def words(*given: str) -> str:
            (found,) = silent([node(endpoint, options=given)]).values()
            return found

        assert "certificate" in words(*options(certificate, cacert=other.authority))
        assert "unknown ca" in words(*options(other, cacert=certificate.authority))
        assert "expired" in words(*options(old))
        assert "certificate required" in words(f"cacert={certificate.authority}")


def test_material_that_is_none_is_told(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no certificate", encoding="utf-8")
    with listening(greet, secured(certificate)) as endpoint:
        assert silent([node(endpoint, options=options(certificate, cert=tmp_path / "x"))])
        assert silent([node(endpoint, options=options(certificate, cacert=tmp_path / "none"))])


def test_a_node_is_given_up_after_several_silences_in_a_row() -> None:
    with listening(None) as hanging:
        watch = NodeWatchdog([node(hanging, "b")], "remote")
        assert watch() is None
        assert watch() is None
        error = watch()
    assert error is not None
    assert (error.exit_code, error.message.startswith("node b: tcp://")) == (3, True)


def test_one_answer_among_them_counts_as_life() -> None:
    answers = iter([False, False, True, False, False, False])

    def talk(stream: socket.socket) -> None:
        if next(answers):
            greet(stream)

    with listening(talk) as endpoint:
        watch = NodeWatchdog([node(endpoint)], "remote")
        assert [watch() is None for _ in range(6)] == [True] * 5 + [False]


def test_only_nodes_that_build_and_have_an_address_are_watched() -> None:
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
