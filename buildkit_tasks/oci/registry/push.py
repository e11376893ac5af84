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
from buildkit_tasks.oci.registry.errors import RequestRejected, TransientError
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.registry.pull import get_registry_url
from buildkit_tasks.oci.source import VerifyingReader, read_blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.http import Response
    from buildkit_tasks.oci.registry.repository import Repository
    from buildkit_tasks.oci.registry.url_policy import Url
    from buildkit_tasks.oci.source import Source

__all__ = ["Uploader", "open_uploader"]

_SEND_SIZE = 1 << 18  # bytes: one may take a time-out, 60 s, to be sent
# Bytes of one request where a whole blob is refused as too large: what stands before a registry may allow
# no more than a megabyte, as nginx does unless it is told otherwise.
_CHUNK_SIZES = (16 << 20, 4 << 20, 1 << 20)
_OK, _CREATED, _ACCEPTED, _NOT_FOUND, _CONTENT_TOO_LARGE = 200, 201, 202, 404, 413
_SUCCESS_STATUSES = frozenset({_OK, _CREATED, _ACCEPTED})
# Upload unknown, a digest that does not hold over there, a part out of order: begin anew.
_RESTART_STATUSES = frozenset({400, 404, 416})
_ACCEPT_HEADERS = {"Accept": ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))}
_NO_REPOSITORY_HINT = "make the repository first: not every registry makes one at the first push"
_BINARY_HEADERS = {"Content-Type": "application/octet-stream"}


@contextmanager
def open_uploader(
    destination: Reference, *, options: RegistryOptions | None = None, mount_from: Reference | None = None
) -> Iterator[Uploader]:
    """A repository to put things into, logged in where that is asked for; connections end with it.

    What a repository ``origin`` of the same registry has need not be sent. Raises
    :class:`RegistryError` for a registry that cannot be reached or refuses, and
    :class:`SettingsError` for a malformed docker config.json.
    """
    options = RegistryOptions() if options is None else options
    credential_store = load_credentials(options.environ, options.commands)
    from buildkit_tasks.oci.registry.repository import Repository

    repository = Repository(
        destination.host,
        get_registry_url(destination, options),
        destination,
        credential_store,
        options,
        actions="pull,push",
    )
    with contextlib.closing(repository):
        repository.ping()
        can_mount = (
            mount_from is not None
            and mount_from.host == destination.host
            and mount_from.repository != destination.repository
        )
        yield Uploader(repository, mount_from.repository if can_mount and mount_from else "")


class Uploader:
    """One repository, written to. Several threads may use it at once.

    ``origin`` is another repository of the registry, from which blobs may be had.
    """

    def __init__(self, repository: Repository, mount_from: str = "") -> None:
        self._repository = repository
        self._mount_from = mount_from
        self._chunk_size = 0

    def abort(self) -> None:
        """Let every upload that is under way fail at once."""
        self._repository.client.abort()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has that blob, as long as it should be."""
        response = self._repository.head(f"blobs/{descriptor.digest}", {})
        return response.status == _OK and response.get_header("Content-Length") in ("", str(descriptor.size))

    def push_blob(self, source: Source, descriptor: Descriptor) -> bool:
        """Send a blob, unless it is there or nearby; gives whether it was sent."""
        if self.has_blob(descriptor) or self._mount_blob(descriptor):
            return False
        url = self._repository.url
        response = self._repository.send_authorized(
            lambda authorization: self._repository.client.with_retries(
                "PUT", url, lambda: self._upload_blob(source, descriptor, authorization)
            )
        )
        self._check_response(response, {_CREATED}, f"blobs/{descriptor.digest}", descriptor.digest)
        return True

    def _mount_blob(self, descriptor: Descriptor) -> bool:
        """Whether the registry takes the blob from the other repository; one that does not is asked once."""
        if not self._mount_from:
            return False
        repository = self._repository
        query = urlencode({"mount": str(descriptor.digest), "from": self._mount_from})
        url = repository.url.with_target(f"/v2/{repository.name}/blobs/uploads/?{query}")
        try:
            response = repository.send_authorized(
                lambda authorization: repository.client.send(
                    "POST", url, {}, b"", authorization=authorization
                )
            )
        except RegistryError:
            self._mount_from = ""
            return False
        response.discard()
        if response.status != _CREATED:
            self._mount_from = ""
        return response.status == _CREATED

    def push_manifest(self, source: Source, descriptor: Descriptor) -> bool:
        """Send a manifest or an index under its digest, unless it is there; gives whether it was sent."""
        data = read_blob(source, descriptor, LIMITS.document_bytes)
        if self.get_digest(str(descriptor.digest)) == descriptor.digest:
            return False
        self.put_manifest(data, descriptor, str(descriptor.digest))
        return True

    def put_manifest(self, data: bytes, descriptor: Descriptor, reference: str) -> None:
        """Put a document's bytes under ``name``: a tag, which is moved, or its digest."""
        repository, path = self._repository, f"manifests/{reference}"
        url = repository.url.with_target(f"/v2/{repository.name}/{path}")
        headers = {"Content-Type": descriptor.media_type}
        response = repository.send_authorized(
            lambda authorization: repository.client.with_retries(
                "PUT",
                url,
                lambda: repository.client.send("PUT", url, headers, data, authorization=authorization),
            )
        )
        self._check_response(response, _SUCCESS_STATUSES, path, descriptor.digest)

    def get_digest(self, reference: str) -> Digest | None:
        """What a tag or a digest names in the repository now; None if nothing."""
        path = f"manifests/{reference}"
        response = self._repository.head(path, _ACCEPT_HEADERS)
        if response.status == _NOT_FOUND:
            return None
        if response.status != _OK:
            raise self._repository.response_error(response, path)
        stated = response.get_header("Docker-Content-Digest")
        return _parse_digest(stated, response) if stated else self._compute_digest(reference)

    def _compute_digest(self, reference: str) -> Digest | None:
        """The same of a registry that does not say it (the specification does not oblige it to)."""
        response = self._repository.get(f"manifests/{reference}", _ACCEPT_HEADERS)
        if response.status == _NOT_FOUND:
            return None
        if response.status != _OK:
            raise self._repository.response_error(response, f"manifests/{reference}")
        return Digest.from_bytes(response.read_document(LIMITS.document_bytes, f"the manifest {reference}"))

    def _upload_blob(self, source: Source, descriptor: Descriptor, authorization: str) -> Response:
        """Begin an upload and end it in one request. Its Location is the registry's word: hostile input.

        ``header`` is our Authorization, which goes to the registry's own origin alone.
        """
        repository, client = self._repository, self._repository.client
        with contextlib.closing(VerifyingReader(source, descriptor)) as stream:
            session_url = repository.url.with_target(f"/v2/{repository.name}/blobs/uploads/")
            session = client.send("POST", session_url, {}, b"", authorization=authorization)
            if session.status in _SUCCESS_STATUSES - {_ACCEPTED} or session.status == _NOT_FOUND:
                error = repository.response_error(session, "blobs/uploads/")  # nobody has sent anything yet
                raise RequestRejected(error.message, hint=error.hint or _NO_REPOSITORY_HINT)
            if session.status != _ACCEPTED:
                return session
            request_size = (
                min(max(self._chunk_size, _read_min_chunk_size(session)), descriptor.size)
                if self._chunk_size
                else descriptor.size
            )
            upload_url = client.follow_location(session)
            if request_size < descriptor.size:
                response = self._upload_chunks(stream, request_size, upload_url, authorization)
            else:
                body = _BlobBody(stream=stream, size=request_size)
                data = body if len(body) else b"".join(body)
                response = self._send_data("PUT", _add_digest(upload_url, descriptor), data, authorization)
        smaller_size = next((each for each in _CHUNK_SIZES if each < request_size), 0)
        if response.status == _CONTENT_TOO_LARGE and smaller_size:
            self._chunk_size = smaller_size
        elif response.status not in _RESTART_STATUSES:
            return response
        error = repository.response_error(response, f"blobs/{descriptor.digest}")
        raise TransientError(error.message, hint=error.hint)

    def _upload_chunks(self, stream: VerifyingReader, size: int, url: Url, authorization: str) -> Response:
        """Send a blob in requests of so many bytes each; the one that ends it goes once all is checked."""
        offset = 0
        while data := _read_exactly(stream, size):
            range_header = {"Content-Range": f"{offset}-{offset + len(data) - 1}"}
            # Not as bytes: those would have one time-out for all of them.
            response = self._send_data("PATCH", url, io.BytesIO(data), authorization, range_header)
            if response.status != _ACCEPTED:
                return response
            url = self._repository.client.follow_location(response)
            offset += len(data)
        return self._send_data("PUT", _add_digest(url, stream.descriptor), b"", authorization)

    def _send_data(
        self,
        method: str,
        url: Url,
        data: bytes | Iterable[bytes],
        authorization: str,
        extra_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Response:
        own_authorization = authorization if url.origin == self._repository.url.origin else ""
        return self._repository.client.send(
            method, url, {**_BINARY_HEADERS, **extra_headers}, data, authorization=own_authorization
        )

    def _check_response(
        self, response: Response, expected: frozenset[int] | set[int], path: str, digest: Digest
    ) -> None:
        if response.status not in expected:
            raise self._repository.response_error(response, path)
        response.discard()
        stated = response.get_header("Docker-Content-Digest")
        if stated and stated.startswith(f"{digest.algorithm}:") and stated != str(digest):
            raise RegistryError(f"{response.url.origin} was sent {digest} and states {stated[:160]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _BlobBody:
    """A blob on its way out; the last piece goes once the whole has been checked."""

    stream: VerifyingReader
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        pending = b""
        while data := self.stream.read(_SEND_SIZE):
            if pending:
                yield pending
            pending = data
        if pending:
            yield pending


def _add_digest(url: Url, descriptor: Descriptor) -> Url:
    """Where an upload is ended: its place, with the blob's digest in the query."""
    separator = "&" if "?" in url.target else "?"
    return url.with_target(f"{url.target}{separator}{urlencode({'digest': str(descriptor.digest)})}")


def _read_min_chunk_size(session: Response) -> int:
    """The smallest chunk that a registry takes but for the last one; no more than we send anyway."""
    value = session.get_header("OCI-Chunk-Min-Length")
    return min(int(value[:10]), _CHUNK_SIZES[0]) if value.isdecimal() else 0


def _read_exactly(stream: VerifyingReader, size: int) -> bytes:
    """The next ``size`` bytes, or what there is before the end; none at the end, which is checked."""
    chunks: list[bytes] = []
    while size and (data := stream.read(size)):
        chunks.append(data)
        size -= len(data)
    return b"".join(chunks)


def _parse_digest(text: str, response: Response) -> Digest:
    try:
        return Digest(text)
    except MalformedImage as error:
        raise RegistryError(f"{response.url.origin} states a digest that is none: {error.message}") from None
