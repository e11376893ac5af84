"""A fake Docker engine on a unix socket, which stops answering at a chosen request."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.support.oci import make_tar
from tests.support.project import program

CONTAINER = "c" * 64
IMAGE = "sha256:" + "1" * 64

_VERSION = re.compile(r"^/v[0-9.]+")
_ID = re.compile(r"/(containers|images)/(?!create|json|load)[^/?]+")


class FakeEngine(socketserver.ThreadingUnixStreamServer):
    """Answers like dockerd until the request ``stop_at``, such as ``POST /containers/*/start``.

    From then on it does not answer; with ``close_connections`` it closes connections instead.
    ``requests`` has all requests. The engine has an image, with ``empty`` only after one was loaded.
    """

    daemon_threads = True

    def __init__(
        self, path: Path, stop_at: str, *, close_connections: bool = False, empty: bool = False
    ) -> None:
        super().__init__(str(path), _Handler)
        self.endpoint = f"unix://{path}"
        self.stop_at, self.close_connections = stop_at, close_connections
        self.empty = empty
        self.requests: list[str] = []
        self.stopped = threading.Event()
        self.started = threading.Event()
        self.released = threading.Event()

    @property
    def guest_ends(self) -> bool:
        """Whether the guest exits by itself, because the engine stops only after that."""
        return self.stop_at.endswith("/wait") or self.stop_at.startswith("DELETE")

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeEngine]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.started.set()
            self.released.set()
            self.shutdown()
            self.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeEngine

    def _handle(self) -> None:
        path = _VERSION.sub("", self.path).partition("?")[0]
        request = f"{self.command} " + _ID.sub(r"/\1/*", path)
        self._read_body()
        engine = self.server
        engine.requests.append(request)
        if request == engine.stop_at:
            engine.stopped.set()
        if engine.stopped.is_set():
            self.close_connection = True
            if not engine.close_connections:
                engine.released.wait()
            return
        self._respond(request)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815 - the names that http.server calls

    def _respond(self, request: str) -> None:
        if request == "POST /containers/*/start":
            self.server.started.set()
        if request == "POST /images/load":
            self.server.empty = False
        if request.endswith("/attach"):
            self._attach()
        elif request == "GET /images/*/json" and self.server.empty:
            self._send(b'{"message": "No such image"}', status=404)
        elif request.endswith("/archive"):
            data = program("linux/arm64")
            stat = {"name": "main", "size": len(data), "mode": 0o755, "linkTarget": ""}
            header = base64.b64encode(json.dumps(stat).encode()).decode()
            self._send(make_tar({"main": data}), {"X-Docker-Container-Path-Stat": header})
        else:
            self._send(json.dumps(_RESPONSES.get(request, {})).encode())

    def _send(self, body: bytes, headers: Mapping[str, str] | None = None, *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _attach(self) -> None:
        self.send_response(101, "UPGRADED")
        for name, value in {"Connection": "Upgrade", "Upgrade": "tcp"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        self.server.started.wait()
        with contextlib.suppress(BrokenPipeError):  # the client gave up before the guest had started
            self.wfile.write(b"\1\0\0\0\0\0\0\6hello\n")
        if not self.server.guest_ends:
            self.server.released.wait()

    def _read_body(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, *_: Any) -> None:
        """Do not log."""


_RESPONSES: dict[str, Any] = {
    "GET /images/*/json": {"Id": IMAGE, "Os": "linux", "Architecture": "arm64", "Variant": ""},
    "POST /containers/create": {"Id": CONTAINER, "Warnings": []},
    "GET /containers/*/json": {
        "Id": CONTAINER,
        "Config": {"Entrypoint": ["/main"], "Env": []},
        "State": {"Running": True, "Pid": 0, "ExitCode": 0, "OOMKilled": False},
    },
    "GET /containers/json": [],
    "POST /containers/*/wait": {"StatusCode": 0},
}
