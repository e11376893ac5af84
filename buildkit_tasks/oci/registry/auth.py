"""Authentication: answer a registry's challenge with an Authorization header.

Implements HTTP Basic and the Bearer token protocol of distribution ("Token Authentication", "OAuth 2"),
which Docker Hub and nearly all other registries use. The first request is anonymous; credentials of
``docker login`` are looked up only when a registry asks for them.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from buildkit_tasks.errors import MalformedImage, RegistryError
from buildkit_tasks.oci.reference import DOCKER_IO
from buildkit_tasks.oci.registry.challenge import Challenge, parse_challenges
from buildkit_tasks.oci.registry.credentials import Credential
from buildkit_tasks.oci.registry.errors import RequestRejected
from buildkit_tasks.oci.registry.url_policy import Url, check_redirect, is_trusted_realm
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from buildkit_tasks.oci.registry.credentials import CredentialStore
    from buildkit_tasks.oci.registry.http import HttpClient, Response
    from buildkit_tasks.oci.registry.options import RegistryOptions

__all__ = ["Authorizer"]

_MAX_TOKEN_RESPONSE = 1 << 20
_OK = 200
_DENIED_STATUSES = frozenset({401, 403})
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # sent as a header value


class Authorizer:
    """Authenticates to one registry, for one repository and ``actions`` on it: ``pull`` or ``pull,push``.

    ``authorization`` is the value of the Authorization header; empty for anonymous requests.
    """

    def __init__(  # noqa: PLR0913 - all are needed to answer a challenge
        self,
        host: str,
        registry_url: Url,
        repository: str,
        *,
        credential_store: CredentialStore,
        client: HttpClient,
        options: RegistryOptions,
        actions: str = "pull",
    ) -> None:
        self.authorization = ""
        self._host = host
        self._registry_url = registry_url
        self._repository = repository
        self._credential_store = credential_store
        self._client = client
        self._options = options
        self._actions = actions
        self._notes: list[str] = []

    def answer_challenge(self, header: str) -> None:
        """Set ``authorization`` as the WWW-Authenticate header asks for.

        Raises :class:`RegistryError` if that is not possible.
        """
        self.authorization = ""
        challenges = {each.scheme: each for each in reversed(parse_challenges(header))}
        if "bearer" in challenges:
            self.authorization = self._get_bearer_header(challenges["bearer"])
        elif "basic" in challenges:
            self.authorization = self._credential.basic_authorization
            if not self.authorization:
                raise self.denied_error()
        else:
            schemes = ", ".join(challenges) or "no known scheme"
            raise RegistryError(
                f"{self._host} requires authentication by {schemes}; only Bearer and Basic are supported"
            )

    def denied_error(self, status: int = 401) -> RequestRejected:
        """Return the error for a denied request, with the login command as hint."""
        username = self._credential.username
        if self._credential == Credential():
            reason = f"{self._host} denies anonymous access to {self._repository}"
        else:
            reason = f"{self._host} denies access to {self._repository}" + (
                f" for {username}" if username else ""
            )
        login = "docker login" if self._host == DOCKER_IO else f"docker login {self._host}"
        notes = "".join(f"; {note}" for note in self._notes)
        return RequestRejected(f"{reason}, or the repository does not exist ({status}){notes}", hint=login)

    @functools.cached_property
    def _credential(self) -> Credential:
        """The credential for the registry; empty, with a note for later errors, if a helper fails."""
        try:
            return self._credential_store.find(self._host) or Credential()
        except RegistryError as error:
            self._notes.append(error.message)
            return Credential()

    def _get_bearer_header(self, challenge: Challenge) -> str:
        realm = Url.parse(challenge.parameters.get("realm", ""), sender=self._host)
        check_redirect(self._registry_url, self._registry_url, realm, self._options.resolve)
        credential = self._credential
        if credential != Credential() and not is_trusted_realm(self._registry_url, realm):
            note = f"no credentials were sent to {realm.origin}, a token server of another domain"
            self._notes = [*(each for each in self._notes if each != note), note]
            credential = Credential()
        if credential.registry_token:
            return _bearer_header(credential.registry_token)
        scopes = self._merge_scopes(challenge.parameters.get("scope", "").split())
        service = challenge.parameters.get("service", "")
        if credential.identity_token:
            response = self._exchange_identity_token(realm, service, scopes, credential.identity_token)
        else:
            response = self._request_token(realm, service, scopes, credential)
        return _bearer_header(self._read_token(response))

    def _merge_scopes(self, requested: list[str]) -> list[str]:
        """Return the requested scopes, extended to all our actions on the repository.

        The challenge to a HEAD request, for example, asks for ``pull`` only even if we push next.
        """
        prefix = f"repository:{self._repository}:"
        if requested and self._actions == "pull":
            return requested
        return [f"{prefix}{self._actions}", *(scope for scope in requested if not scope.startswith(prefix))]

    def _request_token(self, realm: Url, service: str, scopes: list[str], credential: Credential) -> Response:
        """Request a token by GET, with username and password if there are any."""
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if credential.username:
            query.append(("account", credential.username))
        separator = "&" if "?" in realm.target else "?"
        token_url = realm.with_target(f"{realm.target}{separator}{urlencode(query)}")
        return self._client.get(token_url, {"Accept": "application/json"}, credential.basic_authorization)

    def _exchange_identity_token(
        self, realm: Url, service: str, scopes: list[str], identity_token: str
    ) -> Response:
        """Request a token by POST with an identity token (OAuth 2 refresh token)."""
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": "buildkit-tasks",
            "scope": " ".join(scopes),
            "refresh_token": identity_token,
        }
        return self._client.post(realm, form)

    def _read_token(self, response: Response) -> str:
        token_server = f"the token server {response.url.origin} of {self._host}"
        if response.status in _DENIED_STATUSES:
            response.discard()
            raise self.denied_error(response.status)
        if response.status != _OK:
            response.discard()
            raise RegistryError(f"{token_server} answers {response.status}")
        try:
            document = load_object(response.read_document(_MAX_TOKEN_RESPONSE, "a token"), "the token")
        except MalformedImage as error:
            raise RegistryError(f"{token_server}: {error.message}") from None
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str):
            raise RegistryError(f"{token_server} returned no token")
        return token


def _bearer_header(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise RegistryError("the registry's token is not a valid header value")
    return f"Bearer {token}"
