"""What is put into a registry: blobs, manifests by their digests, and names for them.

OCI distribution specification v1.1, "Pushing blobs" (POST, then PUT), "Pushing a blob in chunks",
"Mounting a blob from another repository" and "Pushing manifests". The bytes come from a source and are
checked as they go out: what is not what its descriptor says is never sent to its end. Where an upload
breaks, or is refused in the middle, it is begun anew; where it is too large for one request it is sent in
smaller ones.
"""

from __future__ import annotations

import contextlib
import io
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from buildkit_tasks.errors import MalformedImage, RegistryError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Digest
from buildkit_tasks.oci.registry.credentials import load_credentials
from buildkit_tasks.oci.registry.errors import Interruption, Refused
from buildkit_tasks.oci.registry.options import Access
from buildkit_tasks.oci.registry.pull import home_of
from buildkit_tasks.oci.source import Verified, read_blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.http import Answer
    from buildkit_tasks.oci.registry.repository import Server
    from buildkit_tasks.oci.registry.url_policy import Place
    from buildkit_tasks.oci.source import Source

__all__ = ["Uploads", "open_uploads"]

_PIECE = 1 << 18  # bytes: one may take a time-out, 60 s, to be sent
# Bytes of one request where a whole blob is refused as too large: what stands before a registry may allow
# no more than a megabyte, as nginx does unless it is told otherwise.
_CHUNKS = (16 << 20, 4 << 20, 1 << 20)
_OK, _CREATED, _ACCEPTED, _NOT_FOUND, _TOO_LARGE = 200, 201, 202, 404, 413
_STORED = frozenset({_OK, _CREATED, _ACCEPTED})
# Upload unknown, a digest that does not hold over there, a part out of order: begin anew.
_LOST = frozenset({400, 404, 416})
_ACCEPT = {"Accept": ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))}
_NO_REPOSITORY = "make the repository first: not every registry makes one at the first push"
_BINARY = {"Content-Type": "application/octet-stream"}


@contextmanager
def open_uploads(
    at: Reference, *, access: Access | None = None, origin: Reference | None = None
) -> Iterator[Uploads]:
    """A repository to put things into, logged in where that is asked for; connections end with it.

    What a repository ``origin`` of the same registry has need not be sent. Raises
    :class:`RegistryError` for a registry that cannot be reached or refuses, and
    :class:`SettingsError` for a malformed docker config.json.
    """
    access = Access() if access is None else access
    store = load_credentials(access.environ, access.run)
    from buildkit_tasks.oci.registry.repository import Server

    server = Server(at.host, home_of(at, access), at, store, access, actions="pull,push")
    with contextlib.closing(server):
        server.greet()
        near = origin is not None and origin.host == at.host and origin.repository != at.repository
        yield Uploads(server, origin.repository if near and origin else "")


class Uploads:
    """One repository, written to. Several threads may use it at once.

    ``origin`` is another repository of the registry, from which blobs may be had.
    """

    def __init__(self, server: Server, origin: str = "") -> None:
        self._server = server
        self._origin = origin
        self._chunk = 0

    def abort(self) -> None:
        """Let every upload that is under way fail at once."""
        self._server.transport.abort()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has that blob, as long as it should be."""
        answer = self._server.head(f"blobs/{descriptor.digest}", {})
        return answer.status == _OK and answer.header("Content-Length") in ("", str(descriptor.size))

    def put_blob(self, source: Source, descriptor: Descriptor) -> bool:
        """Send a blob, unless it is there or nearby; gives whether it was sent."""
        if self.has_blob(descriptor) or self._mounts(descriptor):
            return False
        place = self._server.place
        answer = self._server.authorized(
            lambda header: self._server.transport.patiently(
                "PUT", place, lambda: self._send(source, descriptor, header)
            )
        )
        self._expect(answer, {_CREATED}, f"blobs/{descriptor.digest}", descriptor.digest)
        return True

    def _mounts(self, descriptor: Descriptor) -> bool:
        """Whether the registry takes the blob from the other repository; one that does not is asked once."""
        if not self._origin:
            return False
        server = self._server
        query = urlencode({"mount": str(descriptor.digest), "from": self._origin})
        place = server.place.at(f"/v2/{server.repository}/blobs/uploads/?{query}")
        try:
            answer = server.authorized(
                lambda header: server.transport.once("POST", place, {}, b"", authorization=header)
            )
        except RegistryError:
            self._origin = ""
            return False
        answer.discard()
        if answer.status != _CREATED:
            self._origin = ""
        return answer.status == _CREATED

    def put_document(self, source: Source, descriptor: Descriptor) -> bool:
        """Send a manifest or an index under its digest, unless it is there; gives whether it was sent."""
        data = read_blob(source, descriptor, LIMITS.document)
        if self.digest_of(str(descriptor.digest)) == descriptor.digest:
            return False
        self.put_manifest(data, descriptor, str(descriptor.digest))
        return True

    def put_manifest(self, data: bytes, descriptor: Descriptor, name: str) -> None:
        """Put a document's bytes under ``name``: a tag, which is moved, or its digest."""
        server, path = self._server, f"manifests/{name}"
        place = server.place.at(f"/v2/{server.repository}/{path}")
        headers = {"Content-Type": descriptor.media_type}
        answer = server.authorized(
            lambda header: server.transport.patiently(
                "PUT", place, lambda: server.transport.once("PUT", place, headers, data, authorization=header)
            )
        )
        self._expect(answer, _STORED, path, descriptor.digest)

    def digest_of(self, name: str) -> Digest | None:
        """What a tag or a digest names in the repository now; None if nothing."""
        path = f"manifests/{name}"
        answer = self._server.head(path, _ACCEPT)
        if answer.status == _NOT_FOUND:
            return None
        if answer.status != _OK:
            raise self._server.problem(answer, path)
        stated = answer.header("Docker-Content-Digest")
        return _stated(stated, answer) if stated else self._computed(name)

    def _computed(self, name: str) -> Digest | None:
        """The same of a registry that does not say it (the specification does not oblige it to)."""
        answer = self._server.fetch(f"manifests/{name}", _ACCEPT)
        if answer.status == _NOT_FOUND:
            return None
        if answer.status != _OK:
            raise self._server.problem(answer, f"manifests/{name}")
        return Digest.of(answer.document(LIMITS.document, f"the manifest {name}"))

    def _send(self, source: Source, descriptor: Descriptor, header: str) -> Answer:
        """Begin an upload and end it in one request. Its Location is the registry's word: hostile input.

        ``header`` is our Authorization, which goes to the registry's own origin alone.
        """
        server, transport = self._server, self._server.transport
        with contextlib.closing(Verified(source, descriptor)) as stream:
            start = server.place.at(f"/v2/{server.repository}/blobs/uploads/")
            begun = transport.once("POST", start, {}, b"", authorization=header)
            if begun.status in _STORED - {_ACCEPTED} or begun.status == _NOT_FOUND:
                problem = server.problem(begun, "blobs/uploads/")  # nobody has sent anything yet
                raise Refused(problem.message, hint=problem.hint or _NO_REPOSITORY)
            if begun.status != _ACCEPTED:
                return begun
            size = min(max(self._chunk, _least(begun)), descriptor.size) if self._chunk else descriptor.size
            place = transport.led_to(begun)
            if size < descriptor.size:
                answer = self._in_chunks(stream, size, place, header)
            else:
                body = _Body(stream=stream, size=size)
                data = body if len(body) else b"".join(body)
                answer = self._write("PUT", _ended(place, descriptor), data, header)
        smaller = next((each for each in _CHUNKS if each < size), 0)
        if answer.status == _TOO_LARGE and smaller:
            self._chunk = smaller
        elif answer.status not in _LOST:
            return answer
        problem = server.problem(answer, f"blobs/{descriptor.digest}")
        raise Interruption(problem.message, hint=problem.hint)

    def _in_chunks(self, stream: Verified, size: int, place: Place, header: str) -> Answer:
        """Send a blob in requests of so many bytes each; the one that ends it goes once all is checked."""
        at = 0
        while data := _exactly(stream, size):
            stated = {"Content-Range": f"{at}-{at + len(data) - 1}"}
            # Not as bytes: those would have one time-out for all of them.
            answer = self._write("PATCH", place, io.BytesIO(data), header, stated)
            if answer.status != _ACCEPTED:
                return answer
            place = self._server.transport.led_to(answer)
            at += len(data)
        return self._write("PUT", _ended(place, stream.descriptor), b"", header)

    def _write(
        self,
        method: str,
        place: Place,
        data: bytes | Iterable[bytes],
        header: str,
        stated: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        own = header if place.origin == self._server.place.origin else ""
        return self._server.transport.once(method, place, {**_BINARY, **stated}, data, authorization=own)

    def _expect(self, answer: Answer, good: frozenset[int] | set[int], path: str, digest: Digest) -> None:
        if answer.status not in good:
            raise self._server.problem(answer, path)
        answer.discard()
        stated = answer.header("Docker-Content-Digest")
        if stated and stated.startswith(f"{digest.algorithm}:") and stated != str(digest):
            raise RegistryError(f"{answer.place.origin} was sent {digest} and states {stated[:160]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    """A blob on its way out; the last piece goes once the whole has been checked."""

    stream: Verified
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        held = b""
        while data := self.stream.read(_PIECE):
            if held:
                yield held
            held = data
        if held:
            yield held


def _ended(place: Place, descriptor: Descriptor) -> Place:
    """Where an upload is ended: its place, with the blob's digest in the query."""
    joint = "&" if "?" in place.target else "?"
    return place.at(f"{place.target}{joint}{urlencode({'digest': str(descriptor.digest)})}")


def _least(begun: Answer) -> int:
    """The smallest chunk that a registry takes but for the last one; no more than we send anyway."""
    stated = begun.header("OCI-Chunk-Min-Length")
    return min(int(stated[:10]), _CHUNKS[0]) if stated.isdecimal() else 0


def _exactly(stream: Verified, size: int) -> bytes:
    """The next ``size`` bytes, or what there is before the end; none at the end, which is checked."""
    parts: list[bytes] = []
    while size and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _stated(text: str, answer: Answer) -> Digest:
    try:
        return Digest(text)
    except MalformedImage as error:
        raise RegistryError(f"{answer.place.origin} states a digest that is none: {error.message}") from None
