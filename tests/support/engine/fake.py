"""An engine on a unix socket that answers as dockerd does, up to a chosen request, and then no more."""

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
    """``falls_silent_at`` is the request, such as ``POST /containers/*/start``, from which on nothing is
    answered; with ``hangs_up`` connections are closed instead. ``asked`` is every request that came.
    It has an image from the beginning, or with ``empty`` once one was loaded.
    """

    daemon_threads = True

    def __init__(
        self, path: Path, falls_silent_at: str, *, hangs_up: bool = False, empty: bool = False
    ) -> None:
        super().__init__(str(path), _Handler)
        self.endpoint = f"unix://{path}"
        self.falls_silent_at, self.hangs_up = falls_silent_at, hangs_up
        self.empty = empty
        self.asked: list[str] = []
        self.silent = threading.Event()
        self.started = threading.Event()
        self.released = threading.Event()

    @property
    def guest_ends(self) -> bool:
        """Whether the guest comes to its end by itself, for silence after it."""
        return self.falls_silent_at.endswith("/wait") or self.falls_silent_at.startswith("DELETE")

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

    def _answer(self) -> None:
        path = _VERSION.sub("", self.path).partition("?")[0]
        asked = f"{self.command} " + _ID.sub(r"/\1/*", path)
        self._read_body()
        engine = self.server
        engine.asked.append(asked)
        if asked == engine.falls_silent_at:
            engine.silent.set()
        if engine.silent.is_set():
            self.close_connection = True
            if not engine.hangs_up:
                engine.released.wait()
            return
        self._say(asked)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def _say(self, asked: str) -> None:
        if asked == "POST /containers/*/start":
            self.server.started.set()
        if asked == "POST /images/load":
            self.server.empty = False
        if asked.endswith("/attach"):
            self._attach()
        elif asked == "GET /images/*/json" and self.server.empty:
            self._send(b'{"message": "No such image"}', status=404)
        elif asked.endswith("/archive"):
            data = program("linux/arm64")
            stat = {"name": "main", "size": len(data), "mode": 0o755, "linkTarget": ""}
            said = base64.b64encode(json.dumps(stat).encode()).decode()
            self._send(make_tar({"main": data}), {"X-Docker-Container-Path-Stat": said})
        else:
            self._send(json.dumps(_ANSWERS.get(asked, {})).encode())

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
        """Say nothing."""


_ANSWERS: dict[str, Any] = {
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
