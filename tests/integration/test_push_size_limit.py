"""A push to a real registry behind a proxy that limits requests to 1 MiB (nginx, client_max_body_size)."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.oci.copy import push
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.verify import verify
from tests.support.oci import MemoryImage, add_platform, make_tar
from tests.support.registry.real import serve

LIMIT = 1 << 20
SIZE = 5 << 20


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: str
    forwarded: list[int]

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > LIMIT:
            self.close_connection = True
            self.send_response(413)
            self.send_header("Content-Length", "0")
            self.end_headers()
            self.rfile.read(length)  # as nginx does, so that the client receives the response
            return
        body = self.rfile.read(length)
        self.forwarded.append(length)
        with contextlib.closing(http.client.HTTPConnection(self.target)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name != "Content-Length":
                self.send_header(name, value)
        stated = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", stated or str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _forward  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def limited_registry(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """The proxy's host, and the body lengths of the forwarded requests."""
    forwarded: list[int] = []
    with serve(tmp_path) as registry:
        handler = type("Handler", (_Proxy,), {"target": registry, "forwarded": forwarded})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", forwarded
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def test_large_layers_are_chunked(limited_registry: tuple[str, list[int]], tmp_path: Path) -> None:
    host, forwarded = limited_registry
    memory = MemoryImage()
    layers = [make_tar({f"{number}": os.urandom(SIZE)}) for number in range(3)]
    memory.set_index([add_platform(memory, "linux/amd64", layers)])
    options = RegistryOptions(environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=())
    root = push.copy_image(memory, Reference.parse(f"{host}/team/large"), registry_options=options)
    with open_registry(f"{host}/team/large@{root.digest}", options=options) as source:
        report = verify(source, (), "it")
    assert [row.digest for row in report.platforms]
    checks = {check.name: check.ok for row in report.platforms for check in row.checks}
    assert checks["integrity"], report
    assert max(forwarded) == LIMIT
    assert sum(forwarded) > 3 * SIZE
