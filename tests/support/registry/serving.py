"""A registry that serves whatever it is given, sound or not: a real one would refuse broken images.

Read only, plain HTTP, on the loopback interface; the distribution specification's GET and HEAD of
manifests and blobs.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from buildkit_tasks.oci.model import OCI_MANIFEST
from tests.support.oci import Memory


@dataclass
class Shelf:
    """Images by repository; each has the one tag ``latest``."""

    images: dict[str, Memory] = field(default_factory=dict)
    host: str = ""

    def put(self, repository: str, memory: Memory) -> str:
        """Serve an image; gives its reference."""
        self.images[repository] = memory
        return f"{self.host}/{repository}:latest"

    def find(self, path: str) -> tuple[str, str, bytes] | None:
        """Media type, digest and bytes of ``/v2/REPOSITORY/manifests|blobs/WHAT``."""
        repository, _, rest = path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = repository.rpartition("/")
        memory = self.images.get(repository)
        if memory is None or memory.top is None:
            return None
        digest = str(memory.top.digest) if rest == "latest" else rest
        if digest not in memory.blobs:
            return None
        media_type = "application/octet-stream" if kind == "blobs" else _media_type(memory, digest)
        return media_type, digest, memory.blobs[digest]


def _media_type(memory: Memory, digest: str) -> str:
    """What a registry keeps beside a document: the type under which it was pushed, as the index has it."""
    assert memory.top is not None
    if digest == str(memory.top.digest):
        return memory.top.media_type
    with contextlib.suppress(ValueError, KeyError):
        entries = json.loads(memory.blobs[str(memory.top.digest)])["manifests"]
        return next((str(entry["mediaType"]) for entry in entries if entry["digest"] == digest), OCI_MANIFEST)
    return OCI_MANIFEST


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's acknowledgement
    shelf: Shelf

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.path == "/v2/":
            self._send(200, "application/json", b"{}", {}, body=body)
            return
        found = self.shelf.find(self.path)
        if found is None:
            unknown = b'{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}'
            self._send(404, "application/json", unknown, {}, body=body)
            return
        media_type, digest, data = found
        self._send(200, media_type, data, {"Docker-Content-Digest": digest}, body=body)

    def _send(self, status: int, media_type: str, data: bytes, more: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        headers = {"Content-Type": media_type, "Content-Length": str(len(data)), **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has seen enough may hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def serve() -> Iterator[Shelf]:
    """An empty shelf behind a server on a free port."""
    shelf = Shelf()
    handler = type("Handler", (_Handler,), {"shelf": shelf})
    with _Server(("127.0.0.1", 0), handler) as server:
        shelf.host = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield shelf
        finally:
            server.shutdown()
            thread.join()
