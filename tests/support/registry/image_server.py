"""A read-only registry for any images: a real registry rejects invalid ones.

It implements GET and HEAD of manifests and blobs (distribution specification) on the loopback interface.
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
from tests.support.oci import MemoryImage


@dataclass
class ImageServer:
    """Images by repository; each has the one tag ``latest``."""

    images: dict[str, MemoryImage] = field(default_factory=dict)
    host: str = ""

    def put(self, repository: str, memory: MemoryImage) -> str:
        """Serve an image; return its reference."""
        self.images[repository] = memory
        return f"{self.host}/{repository}:latest"

    def find(self, path: str) -> tuple[str, str, bytes] | None:
        """Return media type, digest and bytes of ``/v2/REPOSITORY/manifests|blobs/REFERENCE``."""
        repository, _, rest = path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = repository.rpartition("/")
        memory = self.images.get(repository)
        if memory is None or memory.root is None:
            return None
        digest = str(memory.root.digest) if rest == "latest" else rest
        if digest not in memory.blobs:
            return None
        media_type = "application/octet-stream" if kind == "blobs" else _media_type(memory, digest)
        return media_type, digest, memory.blobs[digest]


def _media_type(memory: MemoryImage, digest: str) -> str:
    """Return the media type with which a registry stores a manifest: that of its index entry."""
    assert memory.root is not None
    if digest == str(memory.root.digest):
        return memory.root.media_type
    with contextlib.suppress(ValueError, KeyError):
        entries = json.loads(memory.blobs[str(memory.root.digest)])["manifests"]
        return next((str(entry["mediaType"]) for entry in entries if entry["digest"] == digest), OCI_MANIFEST)
    return OCI_MANIFEST


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each response is delayed by 40 ms
    images: ImageServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.path == "/v2/":
            self._send(200, "application/json", b"{}", {}, body=body)
            return
        content = self.images.find(self.path)
        if content is None:
            unknown = b'{"errors":[{"code":"BLOB_UNKNOWN","message":"unknown"}]}'
            self._send(404, "application/json", unknown, {}, body=body)
            return
        media_type, digest, data = content
        self._send(200, media_type, data, {"Docker-Content-Digest": digest}, body=body)

    def _send(self, status: int, media_type: str, data: bytes, more: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        headers = {"Content-Type": media_type, "Content-Length": str(len(data)), **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Do not log requests."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect early."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def serve() -> Iterator[ImageServer]:
    """Start an empty server on a free port."""
    images = ImageServer()
    handler = type("Handler", (_Handler,), {"images": images})
    with _Server(("127.0.0.1", 0), handler) as server:
        images.host = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield images
        finally:
            server.shutdown()
            thread.join()
