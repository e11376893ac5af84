"""From a registry's challenge to an Authorization header.

The token protocol of distribution/distribution ("Token Authentication", "OAuth 2"), which Docker Hub and
nearly all others speak, and HTTP Basic. We ask as strangers first; what ``docker login`` has kept is
looked up once a registry asks for it.
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
from buildkit_tasks.oci.registry.errors import Refused
from buildkit_tasks.oci.registry.url_policy import Place, check_hop, trusts
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from buildkit_tasks.oci.registry.credentials import CredentialStore
    from buildkit_tasks.oci.registry.http import Answer, Transport
    from buildkit_tasks.oci.registry.options import Access

__all__ = ["Authorizer"]

_TOKEN_DOCUMENT = 1 << 20
_OK = 200
_REFUSED = frozenset({401, 403})
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # it becomes a header


class Authorizer:
    """Who we are to one registry, for one repository and ``actions`` on it: pull, or pull and push.

    ``header`` is what is sent to it.
    """

    def __init__(  # noqa: PLR0913 - all of it is needed to answer a challenge
        self,
        host: str,
        home: Place,
        repository: str,
        *,
        store: CredentialStore,
        transport: Transport,
        access: Access,
        actions: str = "pull",
    ) -> None:
        self.header = ""
        self._host = host
        self._home = home
        self._repository = repository
        self._store = store
        self._transport = transport
        self._access = access
        self._actions = actions
        self._notes: list[str] = []

    def answer(self, challenge: str) -> None:
        """Set ``header`` to what the registry asks for; :class:`RegistryError` if we have no answer."""
        self.header = ""
        challenges = {each.scheme: each for each in reversed(parse_challenges(challenge))}
        if "bearer" in challenges:
            self.header = self._bearer(challenges["bearer"])
        elif "basic" in challenges:
            self.header = self._credential.basic
            if not self.header:
                raise self.refusal()
        else:
            known = ", ".join(challenges) or "no way"
            raise RegistryError(f"{self._host} wants a login by {known}; Bearer and Basic are known")

    def refusal(self, status: int = 401) -> Refused:
        """The registry's no, with what to do about it."""
        username = self._credential.username
        if self._credential == Credential():
            said = f"{self._host} gives {self._repository} to nobody without a login"
        else:
            said = f"{self._host} refuses {self._repository} to us" + (f" ({username})" if username else "")
        login = "docker login" if self._host == DOCKER_IO else f"docker login {self._host}"
        notes = "".join(f"; {note}" for note in self._notes)
        return Refused(f"{said}, or has no such repository ({status}){notes}", hint=login)

    @functools.cached_property
    def _credential(self) -> Credential:
        """What was kept for this registry; a helper that does not work is noted, not the end."""
        try:
            return self._store.find(self._host) or Credential()
        except RegistryError as error:
            self._notes.append(error.message)
            return Credential()

    def _bearer(self, challenge: Challenge) -> str:
        realm = Place.parse(challenge.parameters.get("realm", ""), by=self._host)
        check_hop(self._home, self._home, realm, self._access.look_up)
        credential = self._credential
        if credential != Credential() and not trusts(self._home, realm):
            note = f"its token server {realm.origin} is not its own, and got no credentials"
            self._notes = [*(each for each in self._notes if each != note), note]
            credential = Credential()
        if credential.registry_token:
            return _header(credential.registry_token)
        scopes = self._scopes(challenge.parameters.get("scope", "").split())
        service = challenge.parameters.get("service", "")
        if credential.identity_token:
            answer = self._trade(realm, service, scopes, credential.identity_token)
        else:
            answer = self._ask(realm, service, scopes, credential)
        return _header(self._token(answer))

    def _scopes(self, wanted: list[str]) -> list[str]:
        """What the registry asks for, and all that we are going to do in the repository.

        A registry that only looks whether a blob is there asks for a token for pulling.
        """
        here = f"repository:{self._repository}:"
        if wanted and self._actions == "pull":
            return wanted
        return [f"{here}{self._actions}", *(scope for scope in wanted if not scope.startswith(here))]

    def _ask(self, realm: Place, service: str, scopes: list[str], credential: Credential) -> Answer:
        """GET a token, with name and password where we have them."""
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if credential.username:
            query.append(("account", credential.username))
        joint = "&" if "?" in realm.target else "?"
        asked = realm.at(f"{realm.target}{joint}{urlencode(query)}")
        return self._transport.get(asked, {"Accept": "application/json"}, credential.basic)

    def _trade(self, realm: Place, service: str, scopes: list[str], identity: str) -> Answer:
        """POST an identity token for a token of this repository."""
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": "buildkit-tasks",
            "scope": " ".join(scopes),
            "refresh_token": identity,
        }
        return self._transport.post(realm, form)

    def _token(self, answer: Answer) -> str:
        where = answer.place.origin
        if answer.status in _REFUSED:
            answer.discard()
            raise self.refusal(answer.status)
        if answer.status != _OK:
            answer.discard()
            raise RegistryError(f"{where}, the token server of {self._host}, answers {answer.status}")
        try:
            document = load_object(answer.document(_TOKEN_DOCUMENT, "a token"), "the token")
        except MalformedImage as error:
            raise RegistryError(f"{where}, the token server of {self._host}: {error.message}") from None
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str):
            raise RegistryError(f"{where}, the token server of {self._host}, gives no token")
        return token


def _header(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise RegistryError("a registry's token holds characters that no header may hold")
    return f"Bearer {token}"
