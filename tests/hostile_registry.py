"""A server on the loopback interface that does what a test tells it to, soundly or not.

It serves any image, sound or broken, and plays scripted answers in front of it: errors, resets, short
reads, other bytes, silence, redirects, token realms.
"""

from __future__ import annotations

import contextlib
import fnmatch
import http.server
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.certificates import Certificate
from tests.images import Memory

_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered. ``length`` is the Content-Length where that lies (-1: none is sent).

    ``cut`` ends the connection after so many bytes of the body, ``reset`` by a TCP reset and before
    anything else is sent if there is no ``cut``; ``silent`` answers nothing until the test ends,
    after so many bytes if there is a ``cut``; ``drip`` waits so many seconds before each byte of the
    body, ``drip_headers`` of the headers.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    length: int | None = None
    cut: int | None = None
    reset: bool = False
    silent: bool = False
    drip: float = 0.0
    drip_headers: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as it came in; ``connection`` is the peer's port."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def authorization(self) -> str:
        return self.headers.get("Authorization", "")


@dataclass(kw_only=True)
class Hostile:
    """The server: where it listens, what it was asked, what it is told to answer."""

    host: str
    asked: list[Asked] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True
    _told: list[tuple[str, list[Reply]]] = field(default_factory=list, repr=False)
    _images: dict[str, tuple[Memory, str]] = field(default_factory=dict, repr=False)

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    @property
    def connections(self) -> int:
        return len({each.connection for each in self.asked})

    def requests(self, pattern: str = "*") -> list[Asked]:
        """The requests whose path (and query) matches."""
        return [each for each in self.asked if fnmatch.fnmatchcase(each.path, pattern)]

    def tell(self, pattern: str, *replies: Reply) -> Hostile:
        """Answer paths that match: one reply after the other, the image after the last.

        The latest told comes first. ``pattern`` is as a shell's, over path and query.
        """
        self._told.insert(0, (pattern, list(replies)))
        return self

    def always(self, pattern: str, reply: Reply) -> Hostile:
        """Answer paths that match with the same reply for ever."""
        return self.tell(pattern, *[reply] * 1000)

    def hold(self, memory: Memory, name: str = "team/image", tag: str = "v1") -> str:
        """Serve an image as it is, unchecked; gives its reference."""
        self._images[name] = (memory, tag)
        return f"{self.host}/{name}:{tag}"

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        for pattern, replies in self._told:
            if replies and fnmatch.fnmatchcase(asked.path, pattern):
                return replies.pop(0)
        return self._stored(asked)

    def _stored(self, asked: Asked) -> Reply:
        path = urlsplit(asked.path).path
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if found is None or found[1] not in self._images:
            return Reply(status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        memory, tag = self._images[found[1]]
        name = found[3]
        digest = str(memory.root().digest) if found[2] == "manifests" and name == tag else name
        if digest not in memory.blobs:
            return Reply(status=404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        data = memory.blobs[digest]
        if found[2] == "manifests":
            headers = {"Content-Type": _media_type(memory, digest, data), "Docker-Content-Digest": digest}
            return Reply(headers=headers, body=data)
        return self._ranged(data, asked.headers.get("Range", ""))

    def _ranged(self, data: bytes, wanted: str) -> Reply:
        found = re.fullmatch(r"bytes=(\d+)-", wanted)
        if found is None or not self.ranges:
            return Reply(body=data)
        start = int(found[1])
        if start >= len(data):
            return Reply(status=416)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Reply(status=206, headers=headers, body=data[start:])


def redirect(url: str, status: int = 307) -> Reply:
    return Reply(status=status, headers={"Location": url})


def bearer(realm: str, **more: str) -> Reply:
    """A registry that wants a token of that token server."""
    given = {"realm": realm, "service": "tests", **more}
    challenge = "Bearer " + ",".join(f'{name}="{value}"' for name, value in given.items())
    return Reply(status=401, headers={"WWW-Authenticate": challenge}, body=b"{}")


def token(text: str = "t0ken") -> Reply:
    body = json.dumps({"token": text, "expires_in": 60}).encode()
    return Reply(headers={"Content-Type": "application/json"}, body=body)


@contextlib.contextmanager
def hostile(
    address: str = "127.0.0.1", *, tls: Certificate | None = None, clients: bool = False
) -> Iterator[Hostile]:
    """Serve on a free port of a loopback address; with ``clients`` to those with a certificate alone."""
    server = _Server((address, 0), _Handler)
    server.told = Hostile(host=f"{address}:{server.server_address[1]}")
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.certificate, tls.key)
        if clients:
            context.load_verify_locations(tls.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.told
    finally:
        server.told.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """A host and port that answers no connection: its queue of them is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


class _Server(http.server.ThreadingHTTPServer):
    told: Hostile
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what many tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""

    def do_GET(self) -> None:
        self._play()

    def do_POST(self) -> None:
        self._play()

    def _play(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(
            method=self.command,
            path=self.path,
            headers=dict(self.headers.items()),
            body=body,
            connection=self.client_address[1],
        )
        reply = self.server.told.answer(asked)
        if reply.cut is None and (reply.reset or reply.silent):
            self._end(reply)
            return
        self._send_head(reply)
        self._send_body(reply)

    def _send_head(self, reply: Reply) -> None:
        lines = [
            f"HTTP/1.1 {reply.status} Told",
            *(f"{name}: {value}" for name, value in reply.headers.items()),
        ]
        length = len(reply.body) if reply.length is None else reply.length
        if length >= 0 and "Transfer-Encoding" not in reply.headers:
            lines.append(f"Content-Length: {length}")
        else:
            self.close_connection = True
        self._send("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1"), reply.drip_headers)

    def _send_body(self, reply: Reply) -> None:
        self._send(reply.body[: reply.cut], reply.drip)
        if reply.cut is not None:
            self._end(reply)

    def _send(self, data: bytes, drip: float) -> None:
        step = 1 if drip else _PIECE
        for at in range(0, len(data), step):
            if drip and self.server.told.closing.wait(drip):
                return
            self.wfile.write(data[at : at + step])
            self.wfile.flush()

    def _end(self, reply: Reply) -> None:
        self.close_connection = True
        if reply.silent:
            self.server.told.closing.wait(120)
        if reply.reset:
            time.sleep(0.02)  # so that what was sent is read first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _media_type(memory: Memory, digest: str, data: bytes) -> str:
    """What the root's descriptor says, or the document itself."""
    root = memory.root()
    if str(root.digest) == digest:
        return root.media_type
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(data).get("mediaType"))
    return "application/octet-stream"
