"""A server on the loopback interface that does what a test tells it to, soundly or not.

It serves any image, sound or broken, takes what is pushed, and plays scripted answers in front of both:
errors, resets, short reads, other bytes, silence, redirects, token realms.
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

from buildkit_tasks.oci.model import Digest
from tests.support.oci import Memory
from tests.support.registry.certificates import Certificate

_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered. ``length`` is the Content-Length where that lies (-1: none is sent).

    ``cut`` ends the connection after so many bytes of the body, ``reset`` by a TCP reset and before
    anything else is sent if there is no ``cut``; ``silent`` answers nothing until the test ends,
    after so many bytes if there is a ``cut``; ``drip`` waits so many seconds before each byte of the
    body, ``drip_headers`` of the headers. ``unread`` answers once that many bytes of the request's body
    were read, and reads no more.
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
class Kept:
    """A repository that was pushed to: media type and bytes by digest, manifests by tag as well."""

    found: dict[str, dict[str, tuple[str, bytes]]] = field(
        default_factory=lambda: {"blobs": {}, "manifests": {}}
    )


@dataclass(kw_only=True)
class Hostile:
    """The server: where it listens, what it was asked, what it is told to answer."""

    host: str
    asked: list[Asked] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True
    states_digests: bool = True
    sluggish: float = 0.0  # seconds before it reads a body
    largest: int | None = (
        None  # bytes of a request's body; a longer one is refused, and what comes of it is not kept
    )
    kept: dict[str, Kept] = field(default_factory=dict, repr=False)
    moved: list[str] = field(default_factory=list)
    begun: dict[str, bytes] = field(default_factory=dict, repr=False)  # uploads in chunks, by their states
    _told: list[tuple[str, list[Reply]]] = field(default_factory=list, repr=False)
    _images: dict[str, tuple[Memory, str]] = field(default_factory=dict, repr=False)

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    @property
    def connections(self) -> int:
        return len({each.connection for each in self.asked})

    def requests(self, pattern: str = "*") -> list[Asked]:
        """The requests whose path (and query) matches, or method and path as in ``PUT */manifests/*``."""
        return [each for each in self.asked if _matches(each, pattern)]

    def answer(self, pattern: str, *replies: Reply) -> Hostile:
        """Answer paths that match: one reply after the other, the image after the last.

        The latest told comes first. ``pattern`` is as a shell's, over path and query, or over those
        after a method.
        """
        self._told.insert(0, (pattern, list(replies)))
        return self

    def always(self, pattern: str, reply: Reply) -> Hostile:
        """Answer paths that match with the same reply for ever."""
        return self.answer(pattern, *[reply] * 1000)

    def hold(self, memory: Memory, name: str = "team/image", tag: str = "v1") -> str:
        """Serve an image as it is, unchecked; gives its reference."""
        self._images[name] = (memory, tag)
        return f"{self.host}/{name}:{tag}"

    def scripted(self, asked: Asked) -> Reply | None:
        """What it was told to answer, before the body is read."""
        for pattern, replies in self._told:
            if replies and _matches(asked, pattern):
                return replies.pop(0)
        return None

    def stored(self, asked: Asked) -> Reply:
        """What a sound registry answers."""
        path = urlsplit(asked.path).path
        if path == "/v2/":
            return Reply(body=b"{}")
        if asked.method in ("POST", "PUT", "PATCH"):
            return self._take(asked, path)
        return self._pushed(path) or self._held(asked, path)

    def _pushed(self, path: str) -> Reply | None:
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if found is None or found[3] not in self.keep(found[1]).found[found[2]]:
            return None
        media_type, data = self.keep(found[1]).found[found[2]][found[3]]
        stated = {"Docker-Content-Digest": str(Digest.from_bytes(data))} if self.states_digests else {}
        return Reply(headers={"Content-Type": media_type, **stated}, body=data)

    def _held(self, asked: Asked, path: str) -> Reply:
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if found is None or found[1] not in self._images:
            return Reply(status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        memory, tag = self._images[found[1]]
        name = found[3]
        digest = str(memory.root_descriptor().digest) if found[2] == "manifests" and name == tag else name
        if digest not in memory.blobs:
            return Reply(status=404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        data = memory.blobs[digest]
        if found[2] == "manifests":
            headers = {"Content-Type": _media_type(memory, digest, data), "Docker-Content-Digest": digest}
            return Reply(headers=headers, body=data)
        return self._ranged(data, asked.headers.get("Range", ""))

    def _take(self, asked: Asked, path: str) -> Reply:
        """A push, as a sound registry takes it: a blob in two requests or in chunks, a manifest in one."""
        begun = re.fullmatch(r"/v2/(.+)/blobs/uploads/", path)
        if begun is not None:
            return Reply(status=202, headers={"Location": f"/upload/{begun[1]}?state=a%2Fb"})
        ended = re.fullmatch(r"/upload/(.+)", path)
        if ended is not None:
            return self._take_blob(asked, self.keep(ended[1]))
        digest = str(Digest.from_bytes(asked.body))
        named = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path)
        if named is None or asked.method != "PUT":
            return Reply(status=404)
        entry = (asked.headers["Content-Type"], asked.body)
        self.keep(named[1]).found["manifests"] |= {named[2]: entry, digest: entry}
        if named[2] != digest:
            self.moved.append(f"{named[1]}:{named[2]}")
        return Reply(status=201, headers={"Docker-Content-Digest": digest})

    def _take_blob(self, asked: Asked, kept: Kept) -> Reply:
        query = parse_qs(urlsplit(asked.path).query)
        state = query.get("state", [""])[0]
        data = self.begun.get(state, b"")
        if asked.method == "PATCH":
            if asked.headers["Content-Range"] != f"{len(data)}-{len(data) + len(asked.body) - 1}":
                return Reply(status=416)
            self.begun[f"{state}+"] = data + asked.body  # the next request goes where this one's answer leads
            return Reply(
                status=202, headers={"Location": f"{urlsplit(asked.path).path}?state={quote(state)}%2B"}
            )
        data += asked.body
        digest = str(Digest.from_bytes(data))
        if query.get("digest") != [digest]:
            return Reply(status=400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        kept.found["blobs"][digest] = ("application/octet-stream", data)
        return Reply(status=201)

    def keep(self, name: str) -> Kept:
        """What was pushed into a repository."""
        return self.kept.setdefault(name, Kept())

    def named(self, name: str) -> str:
        """The digest that a pushed ``REPOSITORY:TAG`` names now, or nothing."""
        repository, _, tag = name.rpartition(":")
        found = self.keep(repository).found["manifests"].get(tag)
        return str(Digest.from_bytes(found[1])) if found else ""

    def _ranged(self, data: bytes, wanted: str) -> Reply:
        found = re.fullmatch(r"bytes=(\d+)-", wanted)
        if found is None or not self.ranges:
            return Reply(body=data)
        start = int(found[1])
        if start >= len(data):
            return Reply(status=416)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Reply(status=206, headers=headers, body=data[start:])


def _matches(asked: Asked, pattern: str) -> bool:
    method, blank, path = pattern.partition(" ")
    if blank:
        return method == asked.method and fnmatch.fnmatchcase(asked.path, path)
    return fnmatch.fnmatchcase(asked.path, pattern)


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

    def do_HEAD(self) -> None:
        self._play()

    def do_PUT(self) -> None:
        self._play()

    def do_PATCH(self) -> None:
        self._play()

    def _play(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = Asked(
            method=self.command,
            path=self.path,
            headers=dict(self.headers.items()),
            body=b"",
            connection=self.client_address[1],
        )
        told = self.server.told
        reply = told.scripted(asked)
        too_large = reply is None and told.largest is not None and length > told.largest
        if too_large:
            reply = Reply(status=413, unread=0)
        unread = None if reply is None else reply.unread
        time.sleep(told.sluggish if length else 0)
        wanted = length if unread is None else min(unread, length)
        asked = dataclasses.replace(asked, body=self.rfile.read(wanted))
        told.asked.append(asked)
        if unread is not None:
            self.close_connection = True
        if len(asked.body) < length and unread is None:
            self.close_connection = True  # the client broke off
            return
        reply = reply or told.stored(asked)
        if reply.cut is None and (reply.reset or reply.silent):
            self._end(reply)
            return
        self._send_head(reply)
        self._send_body(reply)
        if too_large:
            self.rfile.read(length)  # as nginx does, so that the answer is not lost
        elif unread is not None:
            told.closing.wait(0.05)  # so that a client that goes on asking here has asked

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
        if self.command == "HEAD":
            return
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
    root = memory.root_descriptor()
    if str(root.digest) == digest:
        return root.media_type
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(data).get("mediaType"))
    return "application/octet-stream"
