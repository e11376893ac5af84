"""A fake registry on the loopback interface that can be made to misbehave.

It serves images (invalid ones, too) and accepts pushes. Scripted replies override both: errors, resets,
truncated bodies, wrong bytes, silence, redirects and token realms.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from buildkit_tasks.oci.model import Digest
from tests.support.oci import MemoryImage
from tests.support.registry.certificates import Certificate

_CHUNK_SIZE = 1 << 16
# Less than the default read timeout of 60 s: a client that does not keep to a shorter one, or does not end
# when it is interrupted, gets a broken connection.
_MAX_SILENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A response.

    ``length`` is a wrong Content-Length (-1: none). ``cut`` closes the connection after that many bytes of
    the body, or resets it with ``reset``, or keeps it open without data for 30 s with ``silent``; without
    ``cut`` those two happen instead of a response. ``drip`` waits that many seconds before each byte of
    the body, ``drip_headers`` before each one of the headers, for 30 s. ``unread`` replies after reading
    that many bytes of the request body, and does not read the rest.
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
    unread: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A received request; ``connection`` is the client's port."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def authorization(self) -> str:
        return self.headers.get("Authorization", "")


@dataclass(kw_only=True)
class StoredRepository:
    """Pushed content: media type and bytes by digest, of manifests also by tag."""

    content: dict[str, dict[str, tuple[str, bytes]]] = field(
        default_factory=lambda: {"blobs": {}, "manifests": {}}
    )


@dataclass(kw_only=True)
class FakeRegistry:
    """The registry: its address, the requests that it received, and its behaviour."""

    host: str
    received: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    has_closed_silent: bool = False  # a client waited longer for a silent or dripping reply than 30 s
    ranges: bool = True
    states_digests: bool = True
    read_delay: float = 0.0  # seconds before it reads a body
    max_body: int | None = None  # bytes; larger request bodies are rejected with 413
    repositories: dict[str, StoredRepository] = field(default_factory=dict, repr=False)
    moved_tags: list[str] = field(default_factory=list)
    sessions: dict[str, bytes] = field(default_factory=dict, repr=False)  # chunked uploads by state
    _scripts: list[tuple[str, list[Reply]]] = field(default_factory=list, repr=False)
    _images: dict[str, tuple[MemoryImage, str]] = field(default_factory=dict, repr=False)

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    @property
    def connections(self) -> int:
        return len({each.connection for each in self.received})

    def requests(self, pattern: str = "*") -> list[Request]:
        """Return the requests that match a pattern of path and query, or of method and path (``PUT *``)."""
        return [each for each in self.received if _matches(each, pattern)]

    def answer(self, pattern: str, *replies: Reply) -> FakeRegistry:
        """Script replies for matching requests, one each; then the normal ones follow.

        Later scripts take precedence. For ``pattern`` see :meth:`requests`.
        """
        self._scripts.insert(0, (pattern, list(replies)))
        return self

    def answer_always(self, pattern: str, reply: Reply) -> FakeRegistry:
        """Script the same reply for all matching requests."""
        return self.answer(pattern, *[reply] * 1000)

    def add_image(self, memory: MemoryImage, name: str = "team/image", tag: str = "v1") -> str:
        """Serve an image without checking it; return its reference."""
        self._images[name] = (memory, tag)
        return f"{self.host}/{name}:{tag}"

    def scripted_reply(self, request: Request) -> Reply | None:
        """Return the scripted reply to a request, whose body has not been read; None without one."""
        for pattern, replies in self._scripts:
            if replies and _matches(request, pattern):
                return replies.pop(0)
        return None

    def stored_reply(self, request: Request) -> Reply:
        """Return the reply of a correct registry."""
        path = urlsplit(request.path).path
        if path == "/v2/":
            return Reply(body=b"{}")
        if request.method in ("POST", "PUT", "PATCH"):
            return self._accept(request, path)
        return self._pushed_reply(path) or self._image_reply(request, path)

    def _pushed_reply(self, path: str) -> Reply | None:
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if match is None or match[3] not in self.repository(match[1]).content[match[2]]:
            return None
        media_type, data = self.repository(match[1]).content[match[2]][match[3]]
        stated = {"Docker-Content-Digest": str(Digest.from_bytes(data))} if self.states_digests else {}
        return Reply(headers={"Content-Type": media_type, **stated}, body=data)

    def _image_reply(self, request: Request, path: str) -> Reply:
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if match is None or match[1] not in self._images:
            return Reply(status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        memory, tag = self._images[match[1]]
        name = match[3]
        digest = str(memory.root_descriptor().digest) if match[2] == "manifests" and name == tag else name
        if digest not in memory.blobs:
            return Reply(status=404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        data = memory.blobs[digest]
        if match[2] == "manifests":
            headers = {"Content-Type": _media_type(memory, digest, data), "Docker-Content-Digest": digest}
            return Reply(headers=headers, body=data)
        return self._ranged(data, request.headers.get("Range", ""))

    def _accept(self, request: Request, path: str) -> Reply:
        """Accept part of a push: a blob by POST + PUT or in chunks, or a manifest."""
        start = re.fullmatch(r"/v2/(.+)/blobs/uploads/", path)
        if start is not None:
            return Reply(status=202, headers={"Location": f"/upload/{start[1]}?state=a%2Fb"})
        upload = re.fullmatch(r"/upload/(.+)", path)
        if upload is not None:
            return self._accept_blob(request, self.repository(upload[1]))
        digest = str(Digest.from_bytes(request.body))
        manifest = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path)
        if manifest is None or request.method != "PUT":
            return Reply(status=404)
        entry = (request.headers["Content-Type"], request.body)
        self.repository(manifest[1]).content["manifests"] |= {manifest[2]: entry, digest: entry}
        if manifest[2] != digest:
            self.moved_tags.append(f"{manifest[1]}:{manifest[2]}")
        return Reply(status=201, headers={"Docker-Content-Digest": digest})

    def _accept_blob(self, request: Request, repository: StoredRepository) -> Reply:
        query = parse_qs(urlsplit(request.path).query)
        state = query.get("state", [""])[0]
        data = self.sessions.get(state, b"")
        if request.method == "PATCH":
            if request.headers["Content-Range"] != f"{len(data)}-{len(data) + len(request.body) - 1}":
                return Reply(status=416)
            self.sessions[f"{state}+"] = data + request.body  # the new Location has the new state
            return Reply(
                status=202, headers={"Location": f"{urlsplit(request.path).path}?state={quote(state)}%2B"}
            )
        data += request.body
        digest = str(Digest.from_bytes(data))
        if query.get("digest") != [digest]:
            return Reply(status=400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        repository.content["blobs"][digest] = ("application/octet-stream", data)
        return Reply(status=201)

    def repository(self, name: str) -> StoredRepository:
        """Return the pushed content of a repository."""
        return self.repositories.setdefault(name, StoredRepository())

    def tag_digest(self, name: str) -> str:
        """Return the digest of a pushed ``REPOSITORY:TAG``; empty without one."""
        repository, _, tag = name.rpartition(":")
        manifest = self.repository(repository).content["manifests"].get(tag)
        return str(Digest.from_bytes(manifest[1])) if manifest else ""

    def _ranged(self, data: bytes, range_header: str) -> Reply:
        match = re.fullmatch(r"bytes=(\d+)-", range_header)
        if match is None or not self.ranges:
            return Reply(body=data)
        start = int(match[1])
        if start >= len(data):
            return Reply(status=416)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Reply(status=206, headers=headers, body=data[start:])


def _matches(request: Request, pattern: str) -> bool:
    method, blank, path = pattern.partition(" ")
    if blank:
        return method == request.method and fnmatch.fnmatchcase(request.path, path)
    return fnmatch.fnmatchcase(request.path, pattern)


def redirect(url: str, status: int = 307) -> Reply:
    return Reply(status=status, headers={"Location": url})


def bearer(realm: str, **more: str) -> Reply:
    """Return the 401 response of a registry with that token server."""
    parameters = {"realm": realm, "service": "tests", **more}
    challenge = "Bearer " + ",".join(f'{name}="{value}"' for name, value in parameters.items())
    return Reply(status=401, headers={"WWW-Authenticate": challenge}, body=b"{}")


def token(text: str = "t0ken") -> Reply:
    body = json.dumps({"token": text, "expires_in": 60}).encode()
    return Reply(headers={"Content-Type": "application/json"}, body=body)


def too_many_requests(retry_after: str = "") -> Reply:
    return Reply(status=429, headers={"Retry-After": retry_after} if retry_after else {}, body=b"slow down")


@contextlib.contextmanager
def fake_registry(
    address: str = "127.0.0.1", *, tls: Certificate | None = None, require_client_certificate: bool = False
) -> Iterator[FakeRegistry]:
    """Serve a registry on a free port of a loopback address."""
    server = _Server((address, 0), _Handler)
    server.registry = FakeRegistry(host=f"{address}:{server.server_address[1]}")
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # set since Python 3.13; Go ignores key usage
        context.load_cert_chain(tls.certificate, tls.key)
        if require_client_certificate:
            context.load_verify_locations(tls.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.registry
    finally:
        server.registry.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Yield a host and port that does not accept connections: its backlog is full."""
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


def record_socket_timeouts(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Return a list to which the timeout of each socket is added when it is set."""
    timeouts: list[float | None] = []
    set_timeout = socket.socket.settimeout

    def record(sock: socket.socket, value: float | None) -> None:
        timeouts.append(value)
        set_timeout(sock, value)

    monkeypatch.setattr(socket.socket, "settimeout", record)
    return timeouts


class _Server(http.server.ThreadingHTTPServer):
    registry: FakeRegistry
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: in many tests the client disconnects."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Do not log requests."""

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_PATCH(self) -> None:
        self._handle()

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(
            method=self.command,
            path=self.path,
            headers=dict(self.headers.items()),
            body=b"",
            connection=self.client_address[1],
        )
        registry = self.server.registry
        reply = registry.scripted_reply(request)
        too_large = reply is None and registry.max_body is not None and length > registry.max_body
        if too_large:
            reply = Reply(status=413, unread=0)
        unread = None if reply is None else reply.unread
        time.sleep(registry.read_delay if length else 0)
        body = self.rfile.read(length if unread is None else min(unread, length))
        request = dataclasses.replace(request, body=body)
        registry.received.append(request)
        if unread is not None:
            self.close_connection = True
        if len(request.body) < length and unread is None:
            self.close_connection = True  # the client disconnected
            return
        reply = reply or registry.stored_reply(request)
        if reply.cut is None and (reply.reset or reply.silent):
            self._end(reply)
            return
        self._send_head(reply)
        self._send_body(reply)
        if too_large:
            self.rfile.read(length)  # as nginx does, so that the response is not lost
        elif unread is not None:
            registry.closing.wait(0.05)  # for requests that a client sends on this connection

    def _send_head(self, reply: Reply) -> None:
        lines = [
            f"HTTP/1.1 {reply.status} Scripted",
            *(f"{name}: {value}" for name, value in reply.headers.items()),
        ]
        length = len(reply.body) if reply.length is None else reply.length
        if length >= 0 and "Transfer-Encoding" not in reply.headers:
            lines.append(f"Content-Length: {length}")
        else:
            self.close_connection = True
        self._send("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1"), reply.drip_headers)

    def _send_body(self, reply: Reply) -> None:
        if self.command == "HEAD":
            return
        self._send(reply.body[: reply.cut], reply.drip)
        if reply.cut is not None:
            self._end(reply)

    def _send(self, data: bytes, drip: float) -> None:
        step = 1 if drip else _CHUNK_SIZE
        deadline = time.monotonic() + _MAX_SILENCE
        for offset in range(0, len(data), step):
            if drip and (self.server.registry.closing.wait(drip) or time.monotonic() > deadline):
                self._close_silent()
                return
            self.wfile.write(data[offset : offset + step])
            self.wfile.flush()

    def _end(self, reply: Reply) -> None:
        self.close_connection = True
        if reply.silent:
            self.server.registry.closing.wait(_MAX_SILENCE)
            self._close_silent()
        if reply.reset:
            time.sleep(0.02)  # the client reads the sent bytes first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _close_silent(self) -> None:
        self.close_connection = True
        registry = self.server.registry
        registry.has_closed_silent = registry.has_closed_silent or not registry.closing.is_set()


def _media_type(memory: MemoryImage, digest: str, data: bytes) -> str:
    """Return the media type of the root's descriptor, or of the document."""
    root = memory.root_descriptor()
    if str(root.digest) == digest:
        return root.media_type
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(data).get("mediaType"))
    return "application/octet-stream"
