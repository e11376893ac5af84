"""Who we are to a registry, as ``docker login`` has kept it: ``config.json`` and its helpers.

Docker's own rules: ``credHelpers`` names a helper for one host, ``credsStore`` one for all others, and
only where neither is set the file's ``auths`` count. Nothing is ever written. A secret stands in no
argv, no message and no representation.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import BuildkitTasksError, RegistryError, SettingsError
from buildkit_tasks.oci.reference import DOCKER_IO
from buildkit_tasks.system.command import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.system.command import Runner

__all__ = ["Credential", "CredentialStore", "load_credentials"]

DOCKER_IO_KEY = "https://index.docker.io/v1/"  # older than registries with names of their own
_MAX_FILE = 4 << 20
_HELPER_SECONDS = 30.0  # a keychain may ask its user
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_UNKNOWN = "credentials not found"  # how every helper of docker/docker-credential-helpers says so
_TOKEN_USER = "<token>"  # noqa: S105 - the user name by which a helper marks an identity token


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A name and a password, or a token: one that is traded for others, or one that is sent itself."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header by RFC 7617, or nothing without a password."""
        if not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialStore:
    """What a config.json says; helpers are run when somebody asks."""

    run: Runner = field(repr=False)
    path: Path = field(default_factory=Path)
    auths: Mapping[str, Credential] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    helper: str = ""

    def find(self, host: str) -> Credential | None:
        """The credential for a registry's host (and port); None for a stranger.

        Raises :class:`RegistryError` for a helper that does not work.
        """
        key = DOCKER_IO_KEY if host == DOCKER_IO else host
        name = self.helpers.get(key, self.helpers.get(host, self.helper))
        if name:
            return self._ask(name, key)
        if key in self.auths:
            return self.auths[key]
        by_host = (found for stated, found in self.auths.items() if _host_of(stated) == _host_of(key))
        return next(by_host, None)

    def _ask(self, name: str, key: str) -> Credential | None:
        """Run ``docker-credential-NAME get`` with the registry on its standard input."""
        program = f"docker-credential-{name}"
        try:
            call = Call(stdin=key.encode(), timeout=_HELPER_SECONDS)
            done = self.run.run([program, "get"], call)
        except BuildkitTasksError as error:
            raise self._broken(program, error.message) from None
        except OSError as error:  # there, but no program
            raise self._broken(program, error.strerror or "it cannot be started") from None
        if done.ok:
            return _given(done.stdout) or self._no_answer(program)
        if _UNKNOWN in done.stdout.lower() or _UNKNOWN in done.stderr.lower():
            return None
        raise self._broken(program, f"it ended with status {done.returncode}")  # what it says may be secret

    def _no_answer(self, program: str) -> Credential:
        raise self._broken(program, "its answer is no JSON of a credential")

    def _broken(self, program: str, why: str) -> RegistryError:
        return RegistryError(
            f"{program}, which {self.path} names for credentials, does not work: {why}",
            hint=f"install {program}, or take it out of {self.path}",
        )


def load_credentials(environ: Mapping[str, str], run: Runner) -> CredentialStore:
    """Read ``config.json`` in ``DOCKER_CONFIG`` or ``~/.docker``; no file means no credentials.

    Raises :class:`SettingsError` that names the file if it cannot be read.
    """
    folder = environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path(environ.get("HOME") or Path.home()) / ".docker") / "config.json"
    try:
        document = _read(path)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON object"
        raise _settings_error(path, f"cannot be read: {why}") from None
    return CredentialStore(
        run=run,
        path=path,
        auths={host: _entry(path, host, raw) for host, raw in _table(path, document, "auths").items()},
        helpers={
            host: _helper(path, f"credHelpers: {host}", name)
            for host, name in _table(path, document, "credHelpers").items()
        },
        helper=_helper(path, "credsStore", document.get("credsStore")),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    document = json.loads(data[:_MAX_FILE]) if data.strip() else {}
    if not isinstance(document, dict):
        raise ValueError  # noqa: TRY004 - as for every other text that is no object
    return document


def _settings_error(path: Path, why: str) -> SettingsError:
    return SettingsError(f"{path} {why}", hint=f"mend {path}, or name another folder with DOCKER_CONFIG")


def _table(path: Path, document: dict[str, Any], key: str) -> dict[str, Any]:
    table = document.get(key)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise _settings_error(path, f"is malformed: {key} is no object")
    return table


def _helper(path: Path, key: str, name: object) -> str:
    """A helper's name becomes a program's name: it is matched whole."""
    if name in (None, "") and key == "credsStore":
        return ""
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise _settings_error(path, f"is malformed: {key} is no helper's name")
    return name


def _entry(path: Path, host: str, raw: object) -> Credential:
    def text(key: str) -> str:
        value = raw.get(key) if isinstance(raw, dict) else 0
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _settings_error(path, f"is malformed: auths: {host} holds something else than text")
        return value

    username, password = text("username"), text("password")
    if auth := text("auth"):
        username, password = _decoded(path, host, auth)
    return Credential(
        username=username,
        password=password,
        identity_token=text("identitytoken"),
        registry_token=text("registrytoken"),
    )


def _decoded(path: Path, host: str, auth: str) -> tuple[str, str]:
    """Name and password of ``auth``: base64 of both with a colon between, as RFC 7617 has it."""
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeError):
        colon = ""
    if not colon:
        raise _settings_error(path, f"is malformed: auths: {host}: auth is no base64 of NAME:PASSWORD")
    return username, password.strip("\x00")


def _given(answer: str) -> Credential | None:
    """The credential in a helper's answer; None if there is none in it."""
    try:
        document = json.loads(answer)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(username, str) or not isinstance(secret, str):
        return None
    if username == _TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username=username, password=secret)


def _host_of(key: str) -> str:
    """The host in a key of ``auths``, which may have been written as a URL."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]
