from __future__ import annotations

import http.server
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.system import reachability as reach
from buildkit_tasks.system.reachability import call_with_timeout, is_registry_reachable

if TYPE_CHECKING:
    from collections.abc import Iterator


SOON = 2.5  # seconds: less than any other limit here


class _Answer(http.server.BaseHTTPRequestHandler):
    status = 200
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def registry(status: int) -> Iterator[tuple[str, list[str]]]:
    """A registry on this machine that answers everything with one status."""
    asked: list[str] = []
    handler = type("Handler", (_Answer,), {"status": status, "asked": asked})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silence() -> Iterator[str]:
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker Hub is a closed port here, and no proxy is set."""
    monkeypatch.setattr(reach, "DOCKER_HUB", "http://127.0.0.1:9")
    for name in (*reach._PROXY_VARIABLES, "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    # urllib keeps the proxies of its first call.
    monkeypatch.setattr("urllib.request._opener", None)


@pytest.mark.parametrize(
    ("status", "answers"),
    [(200, True), (401, True), (403, True), (404, True), (429, True), (500, False), (503, False)],
)
def test_any_answer_of_a_working_registry_counts(
    monkeypatch: pytest.MonkeyPatch, status: int, *, answers: bool
) -> None:
    with registry(status) as (place, asked):
        monkeypatch.setattr(reach, "DOCKER_HUB", place)
        assert is_registry_reachable(timeout=5) is answers
    assert asked == ["/v2/"]


def test_a_mirror_that_the_engine_uses_counts_as_well() -> None:
    with registry(401) as (place, asked):
        assert is_registry_reachable([f"{place}/"], timeout=5)
    assert asked == ["/v2/"]


def test_a_refused_connection_is_no_answer() -> None:
    started = time.monotonic()
    assert not is_registry_reachable(timeout=30)
    assert time.monotonic() - started < SOON


def test_row_29_a_silent_registry_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with silence() as place:
        monkeypatch.setattr(reach, "DOCKER_HUB", place)
        started = time.monotonic()
        assert not is_registry_reachable(timeout=0.3)
        assert time.monotonic() - started < SOON


def test_a_name_that_does_not_resolve_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not is_registry_reachable(timeout=1)


def test_behind_a_proxy_it_is_the_proxy_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "DOCKER_HUB", "http://no-such-host.invalid")
    with registry(401) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        assert is_registry_reachable(timeout=5)
    assert asked == ["http://no-such-host.invalid/v2/"]


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:port", "nonsense", "", "http://[::1"])
def test_a_mirror_that_is_no_address_is_no_answer(mirror: str) -> None:
    assert not is_registry_reachable([mirror], timeout=1)


def test_an_answer_in_time_is_given() -> None:
    assert call_with_timeout(5, lambda: True)
    assert not call_with_timeout(5, lambda: False)


def test_an_answer_that_comes_too_late_is_not_waited_for() -> None:
    gate = threading.Event()
    started = time.monotonic()
    assert not call_with_timeout(0.1, lambda: gate.wait(30))
    assert time.monotonic() - started < SOON
    gate.set()
