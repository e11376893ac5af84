"""What is put into a registry: blobs, manifests by their digests, and names for them.

OCI distribution specification v1.1, "Pushing blobs" (POST, then PUT), "Mounting a blob from another
repository" and "Pushing manifests". The bytes come from a source and are checked as they go out: what
is not what its descriptor says is never sent to its end. Where an upload breaks, or is refused in the
middle, it is begun anew.
"""

from __future__ import annotations

import contextlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from buildkit_tasks.errors import MalformedImage, RegistryError
from buildkit_tasks.oci.blobs import Verified, read_blob
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Digest
from buildkit_tasks.oci.registry.access import Access
from buildkit_tasks.oci.registry.credentials import load_credentials
from buildkit_tasks.oci.registry.source import home_of
from buildkit_tasks.oci.registry.troubles import Interruption, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.blobs import Source
    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.server import Server
    from buildkit_tasks.oci.registry.transport import Answer

__all__ = ["Uploads", "open_uploads"]

_PIECE = 1 << 18  # bytes: one may take a time-out, 60 s, to be sent
_OK, _CREATED, _ACCEPTED, _NOT_FOUND = 200, 201, 202, 404
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
    from buildkit_tasks.oci.registry.server import Server  # noqa: PLC0415 - requests takes its time to import

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
            place = transport.led_to(begun)
            joint = "&" if "?" in place.target else "?"
            place = place.at(f"{place.target}{joint}{urlencode({'digest': str(descriptor.digest)})}")
            header = header if place.origin == server.place.origin else ""
            body = _Body(stream=stream, size=descriptor.size)
            data = body if len(body) else b"".join(body)
            answer = transport.once("PUT", place, _BINARY, data, authorization=header)
        if answer.status in _LOST:
            problem = server.problem(answer, f"blobs/{descriptor.digest}")
            raise Interruption(problem.message, hint=problem.hint)
        return answer

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


def _stated(text: str, answer: Answer) -> Digest:
    try:
        return Digest(text)
    except MalformedImage as error:
        raise RegistryError(f"{answer.place.origin} states a digest that is none: {error.message}") from None
