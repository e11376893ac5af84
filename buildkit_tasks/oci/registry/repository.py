"""One repository at a registry or mirror."""

from __future__ import annotations

import dataclasses
import re
import threading
from typing import TYPE_CHECKING, BinaryIO, cast

from buildkit_tasks.errors import BuildkitTasksError, MalformedImage, RegistryError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Digest
from buildkit_tasks.oci.registry.auth import Authorizer
from buildkit_tasks.oci.registry.blob_stream import BlobStream
from buildkit_tasks.oci.registry.errors import ManifestUnknown, RequestRejected, TransientError
from buildkit_tasks.oci.registry.http import HttpClient, Response
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.credentials import CredentialStore
    from buildkit_tasks.oci.registry.options import RegistryOptions
    from buildkit_tasks.oci.registry.url_policy import Url

__all__ = ["Repository"]

_DOCUMENT_TYPES = INDEX_TYPES | MANIFEST_TYPES
_ACCEPT = ", ".join(sorted(_DOCUMENT_TYPES))
_SCHEMA_1_PREFIX = "application/vnd.docker.distribution.manifest.v1+"  # json or prettyjws
_OK, _PARTIAL_CONTENT = 200, 206
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 400, 401, 403, 404
_ERROR_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,64})"')
_MAX_ATTEMPTS = 3  # to read a manifest over connections that break
_MAX_ERROR_BODY = 4096  # bytes of an error response that are read


class Repository:
    """A repository at a registry or mirror. Thread-safe after :meth:`ping`.

    Credentials are looked up by ``host``; tokens are requested for ``actions``.
    """

    def __init__(  # noqa: PLR0913 - location, credentials and options
        self,
        host: str,
        url: Url,
        reference: Reference,
        credential_store: CredentialStore,
        options: RegistryOptions,
        *,
        actions: str = "pull",
    ) -> None:
        self._host = host
        self._actions = actions
        self._lock = threading.Lock()
        self._reference = reference
        self._credential_store = credential_store
        self._options = options
        self._connect(url)

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    def get_manifest(self) -> tuple[Descriptor, bytes]:
        """Return descriptor and bytes of the reference's manifest, verified against all known digests."""
        reference = self._reference
        not_found = ManifestUnknown(
            f"{self._host} has no {reference}: the repository or the tag is unknown",
            hint=f"check the spelling, or for a private repository: docker login {self._host}",
        )
        for attempts_left in reversed(range(_MAX_ATTEMPTS)):
            response = self._get_checked(f"manifests/{reference.identifier}", {"Accept": _ACCEPT}, not_found)
            try:
                data = response.read_document(LIMITS.document_bytes, f"the manifest of {reference}")
                break
            except TransientError:
                if not attempts_left:
                    raise
        media_type = _get_media_type(response, str(reference))
        digest = self._check_digest(response, data)  # before parsing
        _check_media_type_field(response, data, media_type, str(reference))
        return Descriptor(media_type=media_type, digest=digest, size=len(data)), data

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob or manifest by digest. Raises :class:`MalformedImage` if it is missing."""
        digest = descriptor.digest
        is_document = descriptor.media_type in _DOCUMENT_TYPES
        path = f"manifests/{digest}" if is_document else f"blobs/{digest}"
        headers = {"Accept": descriptor.media_type if is_document else "*/*"}
        not_found = MalformedImage(f"{digest} is missing from {self._host}/{self._reference.repository}")

        def fetch(offset: int) -> Response:
            range_header = {"Range": f"bytes={offset}-"} if offset else {}
            return self._get_checked(path, {**headers, **range_header}, not_found)

        return cast("BinaryIO", BlobStream(fetch, descriptor))

    def ping(self) -> None:
        """Determine the URL scheme and authenticate, before any other request."""
        response = self._get_authorized("/v2/", {})
        response.discard()
        if response.status in (_UNAUTHORIZED, _FORBIDDEN):
            raise self.response_error(response, "")

    def head(self, path: str, headers: Mapping[str, str]) -> Response:
        """Return the response to HEAD. Raises :class:`RequestRejected` for 401 and 403."""
        target = self._api_path(path)

        def send_request(authorization: str) -> Response:
            return self.client.get(self.url.with_target(target), headers, authorization, method="HEAD")

        response = self.send_authorized(send_request)
        response.discard()
        if response.status in (_UNAUTHORIZED, _FORBIDDEN) and self._is_own_response(response):
            raise self._authorizer.denied_error(response.status)
        return response

    def send_authorized(self, send_request: Callable[[str], Response]) -> Response:
        """Send a request with our Authorization header; after a 401, authenticate and send it again."""
        sent_header = self._authorizer.authorization
        response = send_request(sent_header)
        if response.status != _UNAUTHORIZED or not self._is_own_response(response):
            return response
        response.discard()
        with self._lock:
            if self._authorizer.authorization == sent_header:  # not renewed by another thread
                self._authorizer.answer_challenge(response.get_header("WWW-Authenticate"))
            new_header = self._authorizer.authorization
        return send_request(new_header)

    def response_error(self, response: Response, path: str) -> RequestRejected:
        """Return the error for an unexpected response."""
        error_code = _read_error_code(response)
        response.discard()
        if response.status in (_UNAUTHORIZED, _FORBIDDEN) and self._is_own_response(response):
            return self._authorizer.denied_error(response.status)
        detail = f": {error_code}" if error_code else ""
        resource = f"{self._reference.name}/{path}" if path else "its API"
        error = RequestRejected(f"{response.url.origin} answers {response.status} for {resource}{detail}")
        error.error_code = error_code
        return error

    def get(self, path: str, headers: Mapping[str, str]) -> Response:
        """Return the response to GET, whatever its status."""
        return self._get_authorized(self._api_path(path), headers)

    @property
    def name(self) -> str:
        """The name of the repository in the registry."""
        return self._reference.repository

    def _api_path(self, path: str) -> str:
        return f"/v2/{self._reference.repository}/{path}"

    def _is_own_response(self, response: Response) -> bool:
        return response.url.origin == self.url.origin

    def _connect(self, url: Url) -> None:
        self.url = url
        self.client = HttpClient(url, self._options)
        self._authorizer = Authorizer(
            self._host,
            url,
            self._reference.repository,
            credential_store=self._credential_store,
            client=self.client,
            options=self._options,
            actions=self._actions,
        )

    def _get_checked(self, path: str, headers: Mapping[str, str], not_found: BuildkitTasksError) -> Response:
        """Return a successful response to GET; raise ``not_found`` for 404, an error for other statuses."""
        response = self.get(path, headers)
        if response.status == _OK or (response.status == _PARTIAL_CONTENT and "Range" in headers):
            return response
        if response.status == _NOT_FOUND:
            response.discard()
            raise not_found
        raise self.response_error(response, path)

    def _get_authorized(self, target: str, headers: Mapping[str, str]) -> Response:
        """Send GET, authenticated if necessary; switch to https if an http request is rejected for it."""

        def send_request(authorization: str) -> Response:
            return self.client.get(self.url.with_target(target), headers, authorization)

        response = self.send_authorized(send_request)
        if (
            response.status == _BAD_REQUEST
            and self.url.scheme == "http"
            and b"HTTPS" in response.read(_MAX_ERROR_BODY)
        ):
            # The response of Go and nginx servers with TLS: a registry on the loopback interface.
            response.close()
            self.close()
            self._connect(dataclasses.replace(self.url, scheme="https"))
            response = self.send_authorized(send_request)
        return response

    def _check_digest(self, response: Response, data: bytes) -> Digest:
        """Return the digest of a manifest; it must match the requested and the stated one."""
        requested, stated = self._reference.digest, response.get_header("Docker-Content-Digest")
        for expected in (requested, Digest(stated) if stated else None):
            actual = Digest.from_bytes(data, expected.algorithm) if expected is not None else None
            if actual != expected:
                raise MalformedImage(
                    f"{self._host} sent {actual} for {self._reference} instead of {expected}"
                )
        return requested or Digest.from_bytes(data)


def _read_error_code(response: Response) -> str:
    """Return the error code of a response (OCI distribution specification, "Error Codes"), or nothing."""
    try:
        match = _ERROR_CODE.search(response.read(_MAX_ERROR_BODY))
    except RegistryError:
        return ""
    return match[1].decode() if match else ""


def _get_media_type(response: Response, name: str) -> str:
    """Return the media type of a manifest from the Content-Type header."""
    media_type = response.get_header("Content-Type").partition(";")[0].strip().lower()
    if media_type.startswith(_SCHEMA_1_PREFIX):
        raise MalformedImage(
            f"{name} is a Docker manifest of schema 1, which has no platforms and is no longer supported",
            hint=f"build it again: inv build-multiarch --push -t {name}",
        )
    if media_type not in _DOCUMENT_TYPES:
        stated = f"media type {media_type[:160]!r}" if media_type else "no media type"
        raise MalformedImage(f"{response.url.origin} states {stated} for {name}: not an index or manifest")
    return media_type


def _check_media_type_field(response: Response, data: bytes, media_type: str, name: str) -> None:
    """Raise :class:`MalformedImage` if the manifest has another ``mediaType`` (CVE-2021-41190)."""
    own_type = load_object(data, f"the manifest of {name}").get("mediaType", media_type)
    if own_type != media_type:
        stated = repr(own_type)[:160]
        raise MalformedImage(
            f"{name} has the mediaType {stated}, but {response.url.origin} states {media_type!r}"
        )
