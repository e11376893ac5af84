"""The cache service of GitHub Actions for BuildKit's ``type=gha``, on the loopback interface.

Its second version: three calls of ``github.actions.results.api.v1.CacheService``, and blobs that are
written and read as Azure's "Put Blob", "Put Block", "Put Block List" and "Get Blob" say. An entry can
be found once it is complete; none is ever replaced. As GitHub does, it finds a key by its beginning, the
newest first.
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
    """A token as the runner hands it out, as far as BuildKit reads it: nobody checks its signature."""
    now = int(time.time())
    rights = json.dumps([{"Scope": "refs/heads/main", "Permission": 3}])
    parts = ({"alg": "HS256", "typ": "JWT"}, {"ac": rights, "nbf": now - 60, "exp": now + 3600})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2ln"])


@dataclass
class ActionsCache:
    """What was stored: entries in order, blobs by the entry's number; and the credentials that were shown."""

    url: str = ""
    token: str = field(default_factory=_token)
    entries: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    blocks: dict[tuple[str, str], bytes] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def env(self) -> dict[str, str]:
        """What a step of a workflow has in its environment, once the runner's variables are handed to it."""
        return {
            "ACTIONS_CACHE_SERVICE_V2": "true",
            "ACTIONS_RESULTS_URL": f"{self.url}/",
            "ACTIONS_RUNTIME_TOKEN": self.token,
        }

    @property
    def scopes(self) -> set[str]:
        """The names in the keys of the indexes that BuildKit has stored."""
        found = (re.fullmatch(r"index-(.*)-1-[0-9a-f]{8}#[0-9]+", entry["key"]) for entry in self.entries)
        return {match[1] for match in found if match}

    def call(self, method: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one call of the service."""
        with self.lock:
            if method == "CreateCacheEntry":
                return self._create(asked)
            if method == "FinalizeCacheEntryUpload":
                entry = self._exact(asked)
                assert entry is not None
                entry["done"] = int(asked["size_bytes"]) == len(self.blobs[entry["id"]])
                return 200, {"ok": entry["done"], "entry_id": entry["id"]}
            found = self._find(asked)
            if found is None:
                return 200, {"ok": False}
            return 200, {
                "ok": True,
                "signed_download_url": f"{self.url}/blobs/{found['id']}",
                "matched_key": found["key"],
            }

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._exact(asked) is not None:
            return 409, {"code": "already_exists", "msg": "cache entry already exists"}
        number = str(len(self.entries))
        self.entries.append({**asked, "id": number, "done": False})
        return 200, {"ok": True, "signed_upload_url": f"{self.url}/blobs/{number}"}

    def _exact(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        same = (
            entry
            for entry in self.entries
            if (entry["key"], entry["version"]) == (asked["key"], asked["version"])
        )
        return next(same, None)

    def _find(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        done = [entry for entry in self.entries if entry["done"] and entry["version"] == asked["version"]]
        for key in (asked["key"], *asked.get("restore_keys", ())):
            exact = [entry for entry in done if entry["key"] == key]
            begun = [entry for entry in done if entry["key"].startswith(key)]
            if exact or begun:
                return (exact or begun)[-1]
        return None

    def put(self, number: str, query: dict[str, list[str]], data: bytes) -> None:
        """Write a blob whole, a block of it, or the list of its blocks."""
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
        self.cache.shown.add(self.headers.get("Authorization", ""))
        assert self.path.startswith(_SERVICE), self.path
        status, document = self.cache.call(self.path.removeprefix(_SERVICE), json.loads(self._body()))
        self._answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def do_PUT(self) -> None:
        parts = urlsplit(self.path)
        self.cache.put(parts.path.removeprefix("/blobs/"), parse_qs(parts.query), self._body())
        self._answer(201, b"", {"ETag": '"1"'})

    def do_GET(self) -> None:
        data = self.cache.blobs[urlsplit(self.path).path.removeprefix("/blobs/")]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range", "bytes=0-"))
        assert wanted
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
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
        """Keep the tests' output clean."""


@contextlib.contextmanager
def serve() -> Iterator[ActionsCache]:
    """An empty cache service."""
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
