"""A fake of the GitHub Actions cache service (version 2) for BuildKit's ``type=gha``.

It implements three methods of ``github.actions.results.api.v1.CacheService``, and Azure's "Put Blob",
"Put Block", "Put Block List" and "Get Blob". As at GitHub, entries are immutable, are found once they are
complete, and keys match by prefix, the newest entry first.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["ActionsCache", "serve"]

_SERVICE = "/twirp/github.actions.results.api.v1.CacheService/"


def _token() -> str:
    """Return a token like the runner's, as far as BuildKit reads it; its signature is not checked."""
    now = int(time.time())
    rights = json.dumps([{"Scope": "refs/heads/main", "Permission": 3}])
    parts = ({"alg": "HS256", "typ": "JWT"}, {"ac": rights, "nbf": now - 60, "exp": now + 3600})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2ln"])


@dataclass
class ActionsCache:
    """The stored entries in order, their blobs by id, and the received credentials."""

    url: str = ""
    token: str = field(default_factory=_token)
    entries: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    blocks: dict[tuple[str, str], bytes] = field(default_factory=dict)
    authorizations: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def env(self) -> dict[str, str]:
        """The runner's variables, as a workflow step has to pass them on."""
        return {
            "ACTIONS_CACHE_SERVICE_V2": "true",
            "ACTIONS_RESULTS_URL": f"{self.url}/",
            "ACTIONS_RUNTIME_TOKEN": self.token,
        }

    @property
    def scopes(self) -> set[str]:
        """The scopes in the keys of the indexes that BuildKit has stored."""
        matches = (re.fullmatch(r"index-(.*)-1-[0-9a-f]{8}#[0-9]+", entry["key"]) for entry in self.entries)
        return {match[1] for match in matches if match}

    def call(self, method: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Call a method of the service; return HTTP status and response."""
        with self.lock:
            if method == "CreateCacheEntry":
                return self._create(request)
            if method == "FinalizeCacheEntryUpload":
                entry = self._find_exact(request)
                assert entry is not None
                entry["done"] = int(request["size_bytes"]) == len(self.blobs[entry["id"]])
                return 200, {"ok": entry["done"], "entry_id": entry["id"]}
            entry = self._find(request)
            if entry is None:
                return 200, {"ok": False}
            return 200, {
                "ok": True,
                "signed_download_url": f"{self.url}/blobs/{entry['id']}",
                "matched_key": entry["key"],
            }

    def _create(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._find_exact(request) is not None:
            return 409, {"code": "already_exists", "msg": "cache entry already exists"}
        number = str(len(self.entries))
        self.entries.append({**request, "id": number, "done": False})
        return 200, {"ok": True, "signed_upload_url": f"{self.url}/blobs/{number}"}

    def _find_exact(self, request: dict[str, Any]) -> dict[str, Any] | None:
        matches = (
            entry
            for entry in self.entries
            if (entry["key"], entry["version"]) == (request["key"], request["version"])
        )
        return next(matches, None)

    def _find(self, request: dict[str, Any]) -> dict[str, Any] | None:
        done = [entry for entry in self.entries if entry["done"] and entry["version"] == request["version"]]
        for key in (request["key"], *request.get("restore_keys", ())):
            exact = [entry for entry in done if entry["key"] == key]
            by_prefix = [entry for entry in done if entry["key"].startswith(key)]
            if exact or by_prefix:
                return (exact or by_prefix)[-1]
        return None

    def put(self, number: str, query: dict[str, list[str]], data: bytes) -> None:
        """Write a blob, a block of it, or the list of its blocks."""
        kind = query.get("comp", [""])[0]
        with self.lock:
            if kind == "block":
                self.blocks[number, query["blockid"][0]] = data
            elif kind == "blocklist":
                names = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)<", data.decode())
                self.blobs[number] = b"".join(self.blocks[number, name] for name in names)
            else:
                self.blobs[number] = data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cache: ActionsCache

    def do_POST(self) -> None:
        self.cache.authorizations.add(self.headers.get("Authorization", ""))
        assert self.path.startswith(_SERVICE), self.path
        status, document = self.cache.call(self.path.removeprefix(_SERVICE), json.loads(self._body()))
        self._answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def do_PUT(self) -> None:
        parts = urlsplit(self.path)
        self.cache.put(parts.path.removeprefix("/blobs/"), parse_qs(parts.query), self._body())
        self._answer(201, b"", {"ETag": '"1"'})

    def do_GET(self) -> None:
        data = self.cache.blobs[urlsplit(self.path).path.removeprefix("/blobs/")]
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range", "bytes=0-"))
        assert byte_range
        start, end = int(byte_range[1]), min(int(byte_range[2] or len(data)), len(data) - 1)
        headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}", "ETag": '"1"'}
        self._answer(206, data[start : end + 1], headers)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "x-ms-request-id": "1", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


@contextlib.contextmanager
def serve() -> Iterator[ActionsCache]:
    """Serve an empty cache."""
    cache = ActionsCache()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cache": cache}))
    server.daemon_threads = True
    cache.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield cache
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
