"""One server that speaks the registry's API, and what it holds of one repository."""

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
from buildkit_tasks.oci.registry.errors import Interruption, Missing, Refused
from buildkit_tasks.oci.registry.http import Answer, Transport
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.credentials import CredentialStore
    from buildkit_tasks.oci.registry.options import Access
    from buildkit_tasks.oci.registry.url_policy import Place

__all__ = ["Server"]

_DOCUMENTS = INDEX_TYPES | MANIFEST_TYPES
_ACCEPT = ", ".join(sorted(_DOCUMENTS))
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"  # json or prettyjws
_OK, _PARTIAL = 200, 206
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 400, 401, 403, 404
_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,64})"')
_ATTEMPTS = 3  # at a document whose connection breaks
_SORRY = 4096  # bytes of an error's body that are looked at


class Server:
    """A registry or a mirror of one; ``host`` is the name under which its credentials are kept.

    ``actions`` are what a token is asked for. Once :meth:`greet` is over, several threads may use it.
    """

    def __init__(  # noqa: PLR0913 - what a registry is, and who we are to it
        self,
        host: str,
        place: Place,
        reference: Reference,
        store: CredentialStore,
        access: Access,
        *,
        actions: str = "pull",
    ) -> None:
        self._host = host
        self._actions = actions
        self._lock = threading.Lock()
        self._reference = reference
        self._store = store
        self._access = access
        self._connect(place)

    def close(self) -> None:
        """Close its connections."""
        self.transport.close()

    def manifest(self) -> tuple[Descriptor, bytes]:
        """What the reference names, checked against the digests that are stated for it."""
        reference = self._reference
        unknown = Missing(
            f"{self._host} has no {reference}: the repository or the tag is unknown",
            hint=f"look at the spelling; a private repository may need: docker login {self._host}",
        )
        for left in reversed(range(_ATTEMPTS)):
            answer = self._get(f"manifests/{reference.identifier}", {"Accept": _ACCEPT}, unknown)
            try:
                data = answer.document(LIMITS.document, f"the manifest of {reference}")
                break
            except Interruption:
                if not left:
                    raise
        media_type = _media_type(answer, str(reference))
        digest = self._digest(answer, data)  # before it is parsed
        _check_own_word(answer, data, media_type, str(reference))
        return Descriptor(media_type=media_type, digest=digest, size=len(data)), data

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Stream what is stored under a digest; :class:`MalformedImage` if nothing is."""
        digest = descriptor.digest
        is_document = descriptor.media_type in _DOCUMENTS
        path = f"manifests/{digest}" if is_document else f"blobs/{digest}"
        headers = {"Accept": descriptor.media_type if is_document else "*/*"}
        missing = MalformedImage(f"{digest} is missing from {self._host}/{self._reference.repository}")

        def ask(offset: int) -> Answer:
            ranged = {"Range": f"bytes={offset}-"} if offset else {}
            return self._get(path, {**headers, **ranged}, missing)

        return cast("BinaryIO", BlobStream(ask, descriptor))

    def greet(self) -> None:
        """Find out how the registry is spoken to, and log in where it wants that, before all else."""
        answer = self._authorized("/v2/", {})
        answer.discard()
        if answer.status in (_UNAUTHORIZED, _FORBIDDEN):
            raise self.problem(answer, "")

    def head(self, path: str, headers: Mapping[str, str]) -> Answer:
        """The answer to HEAD: whether something is there, and its headers. Refusals are raised."""
        target = self._target(path)

        def ask(authorization: str) -> Answer:
            return self.transport.get(self.place.at(target), headers, authorization, method="HEAD")

        answer = self.authorized(ask)
        answer.discard()
        if answer.status in (_UNAUTHORIZED, _FORBIDDEN) and self._is_home(answer):
            raise self._authorizer.refusal(answer.status)
        return answer

    def authorized(self, ask: Callable[[str], Answer]) -> Answer:
        """Ask with our Authorization header; where another is wanted, get it and ask once more."""
        sent = self._authorizer.header
        answer = ask(sent)
        if answer.status != _UNAUTHORIZED or not self._is_home(answer):
            return answer
        answer.discard()
        with self._lock:
            if self._authorizer.header == sent:  # else another thread has got one meanwhile
                self._authorizer.answer(answer.header("WWW-Authenticate"))
            header = self._authorizer.header
        return ask(header)

    def problem(self, answer: Answer, path: str) -> Refused:
        """What to say of an answer that is none of the good ones."""
        code = _code_in(answer)
        answer.discard()
        if answer.status in (_UNAUTHORIZED, _FORBIDDEN) and self._is_home(answer):
            return self._authorizer.refusal(answer.status)
        said = f": {code}" if code else ""
        where = f"{self._reference.name}/{path}" if path else "its API"
        return Refused(f"{answer.place.origin} answers {answer.status} for {where}{said}")

    def fetch(self, path: str, headers: Mapping[str, str]) -> Answer:
        """The answer to GET, good or not."""
        return self._authorized(self._target(path), headers)

    @property
    def repository(self) -> str:
        """The repository's path."""
        return self._reference.repository

    def _target(self, path: str) -> str:
        return f"/v2/{self._reference.repository}/{path}"

    def _is_home(self, answer: Answer) -> bool:
        return answer.place.origin == self.place.origin

    def _connect(self, place: Place) -> None:
        self.place = place
        self.transport = Transport(place, self._access)
        self._authorizer = Authorizer(
            self._host,
            place,
            self._reference.repository,
            store=self._store,
            transport=self.transport,
            access=self._access,
            actions=self._actions,
        )

    def _get(self, path: str, headers: Mapping[str, str], unknown: BuildkitTasksError) -> Answer:
        """The good answer to a request, with whatever login it takes; ``unknown`` is raised for a 404."""
        answer = self.fetch(path, headers)
        if answer.status == _OK or (answer.status == _PARTIAL and "Range" in headers):
            return answer
        if answer.status == _NOT_FOUND:
            answer.discard()
            raise unknown
        raise self.problem(answer, path)

    def _authorized(self, target: str, headers: Mapping[str, str]) -> Answer:
        """GET; where a login is wanted, or a token has run out, get one and ask once more."""

        def ask(authorization: str) -> Answer:
            return self.transport.get(self.place.at(target), headers, authorization)

        answer = self.authorized(ask)
        if answer.status == _BAD_REQUEST and self.place.scheme == "http" and b"HTTPS" in answer.read(_SORRY):
            # What Go's and nginx's servers answer: a registry on the loopback interface that has TLS.
            answer.close()
            self.close()
            self._connect(dataclasses.replace(self.place, scheme="https"))
            answer = self.authorized(ask)
        return answer

    def _digest(self, answer: Answer, data: bytes) -> Digest:
        """The document's digest, as it was asked for, or else as the registry states it."""
        asked, stated = self._reference.digest, answer.header("Docker-Content-Digest")
        for wanted in (asked, Digest(stated) if stated else None):
            if wanted is not None and Digest.of(data, wanted.algorithm) != wanted:
                found = Digest.of(data, wanted.algorithm)
                raise MalformedImage(f"{self._host} states {wanted} for {self._reference} and gives {found}")
        return asked or Digest.of(data)


def _code_in(answer: Answer) -> str:
    """The registry's own word for an error (OCI distribution specification, "Error Codes"), or nothing."""
    try:
        found = _CODE.search(answer.read(_SORRY))
    except RegistryError:
        return ""
    return found[1].decode() if found else ""


def _media_type(answer: Answer, name: str) -> str:
    """What the registry says that a document is."""
    media_type = answer.header("Content-Type").partition(";")[0].strip().lower()
    if media_type.startswith(_SCHEMA_1):
        raise MalformedImage(
            f"{name} is in Docker's schema 1, which had no platforms and which engines no longer read",
            hint=f"build it anew: docker buildx build --push -t {name}",
        )
    if media_type not in _DOCUMENTS:
        said = repr(media_type[:160]) if media_type else "nothing"
        raise MalformedImage(f"{answer.place.origin} calls {name} {said}: that is no index and no manifest")
    return media_type


def _check_own_word(answer: Answer, data: bytes, media_type: str, name: str) -> None:
    """A document is for everybody what it is for us (CVE-2021-41190)."""
    own = load_object(data, f"the manifest of {name}").get("mediaType", media_type)
    if own != media_type:
        stated = repr(own)[:160]
        raise MalformedImage(f"{name} calls itself {stated}; {answer.place.origin} says {media_type!r}")
