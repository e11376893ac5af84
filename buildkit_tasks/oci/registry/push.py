"""Push blobs, manifests and tags (OCI distribution specification v1.1, "Push").

Blobs are verified while they are sent; an upload of wrong content is never completed. An upload has these
steps, and starts again at the first one if the connection breaks or the registry loses it::

    POST /v2/NAME/blobs/uploads/     -> 202, Location of the upload session
    PUT Location?digest=...          the whole blob, or
    PATCH Location (repeatedly)      chunks, if a single request is rejected as too large (413), then
    PUT Location?digest=...          without a body
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
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Digest
from buildkit_tasks.oci.registry.credentials import load_credentials
from buildkit_tasks.oci.registry.errors import RETRY_LATER, RequestRejected, TransientError
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.registry.pull import get_registry_url
from buildkit_tasks.oci.source import VerifyingReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.http import Response
    from buildkit_tasks.oci.registry.repository import Repository
    from buildkit_tasks.oci.registry.url_policy import Url
    from buildkit_tasks.oci.source import Source

__all__ = ["Uploader", "open_uploader"]

_SEND_SIZE = 1 << 18  # bytes that may take one timeout, 60 s, to be sent
# Bytes per request, tried in this order if a whole blob is too large: a proxy in front of the registry may
# allow only one megabyte, which is nginx's default.
_CHUNK_SIZES = (16 << 20, 4 << 20, 1 << 20)
_OK, _CREATED, _ACCEPTED, _BAD_REQUEST, _NOT_FOUND, _CONTENT_TOO_LARGE = 200, 201, 202, 400, 404, 413
_SUCCESS_STATUSES = frozenset({_OK, _CREATED, _ACCEPTED})
# Digest mismatch, unknown upload, chunk out of order: the upload starts again.
_RESTART_STATUSES = frozenset({400, 404, 416})
_ACCEPT_HEADERS = {"Accept": ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))}
_NO_REPOSITORY_HINT = "create the repository first: not every registry creates it on push"
_BINARY_HEADERS = {"Content-Type": "application/octet-stream"}


@contextmanager
def open_uploader(
    destination: Reference, *, options: RegistryOptions | None = None, mount_from: Reference | None = None
) -> Iterator[Uploader]:
    """Connect to a repository for pushing; the connections are closed at the end.

    Blobs of the repository ``mount_from`` of the same registry are mounted instead of sent. Raises
    :class:`RegistryError` if the registry cannot be reached or denies access, and
    :class:`SettingsError` for a malformed config.json.
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
    """Pushes to one repository; mounts blobs from another one of the registry if given. Thread-safe."""

    def __init__(self, repository: Repository, mount_from: str = "") -> None:
        self._repository = repository
        self._mount_from = mount_from
        self._chunk_size = 0

    def abort(self) -> None:
        """Make all uploads fail now."""
        self._repository.client.abort()

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return True if the repository has the blob, with the right size."""
        response = self._repository.head(f"blobs/{descriptor.digest}", {})
        return response.status == _OK and response.get_header("Content-Length") in ("", str(descriptor.size))

    def push_blob(self, source: Source, descriptor: Descriptor) -> bool:
        """Send a blob unless it exists or can be mounted; return True if it was sent."""
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
        """Mount the blob from the other repository; return True on success. A failure disables mounting."""
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
        """Send a manifest or index by digest unless it exists; return True if it was sent."""
        data = Image.wrap(source).read_document(descriptor)
        if self.get_digest(str(descriptor.digest)) == descriptor.digest:
            return False
        self.put_manifest(data, descriptor, str(descriptor.digest))
        return True

    def put_manifest(self, data: bytes, descriptor: Descriptor, reference: str) -> None:
        """Put a manifest under ``reference``: its digest, or a tag, which is moved."""
        repository, path = self._repository, f"manifests/{reference}"
        headers = {"Content-Type": descriptor.media_type}
        response = repository.send_authorized(
            lambda authorization: repository.client.with_retries(
                "PUT", repository.url, lambda: self._send_manifest(path, headers, data, authorization)
            )
        )
        self._check_response(response, _SUCCESS_STATUSES, path, descriptor.digest)

    def _send_manifest(
        self, path: str, headers: Mapping[str, str], data: bytes, authorization: str
    ) -> Response:
        """Send a manifest; raise :class:`TransientError` if the registry could not read the link of a blob.

        Docker's registry before 3.1 empties a link while another push writes it, and answers DIGEST_INVALID:
        https://github.com/distribution/distribution/pull/4624.
        """
        repository = self._repository
        url = repository.url.with_target(f"/v2/{repository.name}/{path}")
        response = repository.client.send("PUT", url, headers, data, authorization=authorization)
        if response.status != _BAD_REQUEST:
            return response
        error = repository.response_error(response, path)
        if error.error_code == "DIGEST_INVALID":
            raise TransientError(error.message, hint=RETRY_LATER)
        raise error

    def get_digest(self, reference: str) -> Digest | None:
        """Return the digest that a tag (or digest) refers to; None if it does not exist."""
        path = f"manifests/{reference}"
        response = self._repository.head(path, _ACCEPT_HEADERS)
        if response.status == _NOT_FOUND:
            return None
        if response.status != _OK:
            raise self._repository.response_error(response, path)
        stated = response.get_header("Docker-Content-Digest")
        return _parse_digest(stated, response) if stated else self._compute_digest(reference)

    def _compute_digest(self, reference: str) -> Digest | None:
        """Compute the digest for a registry that does not state it: the header is optional in OCI."""
        response = self._repository.get(f"manifests/{reference}", _ACCEPT_HEADERS)
        if response.status == _NOT_FOUND:
            return None
        if response.status != _OK:
            raise self._repository.response_error(response, f"manifests/{reference}")
        return Digest.from_bytes(response.read_document(LIMITS.document_bytes, f"the manifest {reference}"))

    def _upload_blob(self, source: Source, descriptor: Descriptor, authorization: str) -> Response:
        """Upload a blob with POST + PUT, or in chunks. The Location header is untrusted.

        Raises :class:`TransientError` if the upload may succeed from the start, with smaller chunks perhaps.
        """
        with contextlib.closing(VerifyingReader(source, descriptor)) as stream:
            session = self._start_session(authorization)
            if session.status != _ACCEPTED:
                return session
            request_size = self._choose_request_size(session, descriptor)
            url = self._repository.client.follow_location(session)
            if request_size < descriptor.size:
                response = self._upload_chunks(stream, request_size, url, authorization)
            else:
                body = _BlobBody(stream=stream, size=request_size)
                data = body if len(body) else b"".join(body)
                response = self._send_data("PUT", _add_digest(url, descriptor), data, authorization)
        smaller_size = next((each for each in _CHUNK_SIZES if each < request_size), 0)
        if response.status == _CONTENT_TOO_LARGE and smaller_size:
            self._chunk_size = smaller_size
        elif response.status not in _RESTART_STATUSES:
            return response
        error = self._repository.response_error(response, f"blobs/{descriptor.digest}")
        raise TransientError(error.message, hint=error.hint)

    def _start_session(self, authorization: str) -> Response:
        """Start an upload session. A 404 means that the registry does not create repositories on push."""
        repository = self._repository
        url = repository.url.with_target(f"/v2/{repository.name}/blobs/uploads/")
        response = repository.client.send("POST", url, {}, b"", authorization=authorization)
        if response.status in _SUCCESS_STATUSES - {_ACCEPTED} or response.status == _NOT_FOUND:
            error = repository.response_error(response, "blobs/uploads/")
            raise RequestRejected(error.message, hint=error.hint or _NO_REPOSITORY_HINT)
        return response

    def _choose_request_size(self, session: Response, descriptor: Descriptor) -> int:
        if not self._chunk_size:
            return descriptor.size
        return min(max(self._chunk_size, _read_min_chunk_size(session)), descriptor.size)

    def _upload_chunks(self, stream: VerifyingReader, size: int, url: Url, authorization: str) -> Response:
        """Send a blob in chunks of ``size`` bytes; the final PUT follows once all bytes are verified."""
        offset = 0
        while data := _read_exactly(stream, size):
            range_header = {"Content-Range": f"{offset}-{offset + len(data) - 1}"}
            # A file is sent in parts, each with its own timeout; bytes would have one timeout for all.
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
        # Another host, such as a blob store, does not get our credentials.
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
            raise RegistryError(f"{response.url.origin} received {digest}, but states {stated[:160]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _BlobBody:
    """A blob as request body; its last piece is sent only after the whole blob is verified."""

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
    """Return the upload URL with the digest in the query, which completes the upload."""
    separator = "&" if "?" in url.target else "?"
    return url.with_target(f"{url.target}{separator}{urlencode({'digest': str(descriptor.digest)})}")


def _read_min_chunk_size(session: Response) -> int:
    """Return the minimum size of all chunks but the last one, capped at our largest chunk."""
    value = session.get_header("OCI-Chunk-Min-Length")
    return min(int(value[:10]), _CHUNK_SIZES[0]) if value.isdecimal() else 0


def _read_exactly(stream: VerifyingReader, size: int) -> bytes:
    """Return the next ``size`` bytes; fewer before the end, none once the end is verified."""
    chunks: list[bytes] = []
    while size and (data := stream.read(size)):
        chunks.append(data)
        size -= len(data)
    return b"".join(chunks)


def _parse_digest(text: str, response: Response) -> Digest:
    try:
        return Digest(text)
    except MalformedImage as error:
        raise RegistryError(f"{response.url.origin} states an invalid digest: {error.message}") from None
