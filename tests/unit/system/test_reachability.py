from __future__ import annotations

import http.server
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.system import reachability
from buildkit_tasks.system.reachability import call_with_timeout, is_registry_reachable

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.timeout(120)  # the timeouts of a failing test are longer


class _Handler(http.server.BaseHTTPRequestHandler):
    status = 200
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


@contextmanager
def registry(status: int) -> Iterator[tuple[str, list[str]]]:
    """Serve a registry that answers every request with one status."""
    paths: list[str] = []
    handler = type("Handler", (_Handler,), {"status": status, "paths": paths})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silent_server() -> Iterator[str]:
    """Listen, but never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Docker Hub a closed port, and unset all proxies."""
    monkeypatch.setattr(reachability, "DOCKER_HUB", "http://127.0.0.1:9")
    for name in (*reachability._PROXY_VARIABLES, "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    # urllib caches the proxies of its first call.
    monkeypatch.setattr("urllib.request._opener", None)


@pytest.mark.parametrize(
    ("status", "reachable"),
    [(200, True), (401, True), (403, True), (404, True), (429, True), (500, False), (503, False)],
)
def test_status_codes(monkeypatch: pytest.MonkeyPatch, status: int, *, reachable: bool) -> None:
    with registry(status) as (url, paths):
        monkeypatch.setattr(reachability, "DOCKER_HUB", url)
        assert is_registry_reachable(timeout=5) is reachable
    assert paths == ["/v2/"]


def test_mirror_counts() -> None:
    with registry(401) as (url, paths):
        assert is_registry_reachable([f"{url}/"], timeout=5)
    assert paths == ["/v2/"]


def test_mirrors_share_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float] = []
    monkeypatch.setattr(reachability, "call_with_timeout", lambda timeout, _: timeouts.append(timeout))
    assert not is_registry_reachable(["http://a", "http://b"], timeout=3)
    assert timeouts == [1, 1, 1]


def test_refused_connection() -> None:
    assert not is_registry_reachable(timeout=600)


def test_silent_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as url:
        monkeypatch.setattr(reachability, "DOCKER_HUB", url)
        assert not is_registry_reachable(timeout=0.3)


def test_unresolved_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail_to_resolve)
    assert not is_registry_reachable(timeout=1)


def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "DOCKER_HUB", "http://no-such-host.invalid")
    with registry(401) as (proxy, paths):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        assert is_registry_reachable(timeout=5)
    assert paths == ["http://no-such-host.invalid/v2/"]


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:port", "nonsense", "", "http://[::1"])
def test_invalid_mirror(mirror: str) -> None:
    assert not is_registry_reachable([mirror], timeout=1)


def test_call_in_time() -> None:
    assert call_with_timeout(5, lambda: True)
    assert not call_with_timeout(5, lambda: False)


def test_call_timeout() -> None:
    event = threading.Event()
    assert not call_with_timeout(0.1, lambda: event.wait(600))
    event.set()
