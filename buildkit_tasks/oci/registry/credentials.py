"""Credentials of ``docker login``: ``config.json`` and credential helpers.

As in Docker, ``credHelpers`` has helpers by host, ``credsStore`` is the helper for all other hosts, and
``auths`` is used only without a helper. Nothing is written. Secrets do not appear in argv, messages or
representations.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import BuildkitTasksError, RegistryError, SettingsError
from buildkit_tasks.oci.reference import DOCKER_IO
from buildkit_tasks.system.command import CommandOptions
from buildkit_tasks.system.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.system.command import CommandRunner

__all__ = ["Credential", "CredentialStore", "load_credentials"]

DOCKER_HUB_AUTH_KEY = "https://index.docker.io/v1/"  # predates registry host names
_MAX_CONFIG_SIZE = 4 << 20
_HELPER_TIMEOUT = 30.0  # seconds; a keychain may ask the user
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_NOT_FOUND_MESSAGE = "credentials not found"  # of all helpers in docker/docker-credential-helpers
_TOKEN_USERNAME = "<token>"  # noqa: S105 - marks the secret as an identity token


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A username and password, an identity token (exchanged for others) or a registry token (sent itself)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic_authorization(self) -> str:
        """The value of a Basic Authorization header (RFC 7617); empty without a password."""
        if not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialStore:
    """The credentials of a config.json; helpers are run when needed."""

    commands: CommandRunner = field(repr=False)
    path: Path = field(default_factory=Path)
    auths: Mapping[str, Credential] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    default_helper: str = ""

    def find(self, host: str) -> Credential | None:
        """Return the credential for a registry's host (and port); None if there is none.

        Raises :class:`RegistryError` if a helper fails.
        """
        key = DOCKER_HUB_AUTH_KEY if host == DOCKER_IO else host
        helper = self.helpers.get(key, self.helpers.get(host, self.default_helper))
        if helper:
            return self._call_helper(helper, key)
        if key in self.auths:
            return self.auths[key]
        by_host = (
            credential
            for auth_key, credential in self.auths.items()
            if _strip_url(auth_key) == _strip_url(key)
        )
        return next(by_host, None)

    def _call_helper(self, helper: str, key: str) -> Credential | None:
        """Run ``docker-credential-NAME get`` with the registry on standard input."""
        program = f"docker-credential-{helper}"
        try:
            options = CommandOptions(stdin=key.encode(), timeout=_HELPER_TIMEOUT)
            result = self.commands.run([program, "get"], options)
        except BuildkitTasksError as error:
            raise self._helper_error(program, error.message) from None
        except OSError as error:  # exists but is not executable
            raise self._helper_error(program, error.strerror or "it cannot be started") from None
        if result.ok:
            return _parse_helper_output(result.stdout) or self._raise_invalid_output(program)
        if _NOT_FOUND_MESSAGE in result.stdout.lower() or _NOT_FOUND_MESSAGE in result.stderr.lower():
            return None
        # Without its output, which may contain secrets.
        raise self._helper_error(program, f"it exited with status {result.returncode}")

    def _raise_invalid_output(self, program: str) -> Credential:
        raise self._helper_error(program, "its output is not a JSON credential")

    def _helper_error(self, program: str, reason: str) -> RegistryError:
        return RegistryError(
            f"the credential helper {program}, configured in {self.path}, failed: {reason}",
            hint=f"install {program}, or remove it from {self.path}",
        )


def load_credentials(environ: Mapping[str, str], commands: CommandRunner) -> CredentialStore:
    """Read ``config.json`` in ``DOCKER_CONFIG`` or ``~/.docker``; without a file there are no credentials.

    Raises :class:`SettingsError` if it cannot be read or is malformed.
    """
    config_dir = environ.get("DOCKER_CONFIG")
    path = (
        Path(config_dir) if config_dir else Path(environ.get("HOME") or expand_home("~")) / ".docker"
    ) / "config.json"
    try:
        document = _read_config(path)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a JSON object"
        raise _settings_error(path, f"cannot be read: {reason}") from None
    return CredentialStore(
        commands=commands,
        path=path,
        auths={
            host: _parse_auth_entry(path, host, entry)
            for host, entry in _get_object(path, document, "auths").items()
        },
        helpers={
            host: _check_helper_name(path, f"credHelpers: {host}", helper)
            for host, helper in _get_object(path, document, "credHelpers").items()
        },
        default_helper=_check_helper_name(path, "credsStore", document.get("credsStore")),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_SIZE + 1)
    except FileNotFoundError:
        return {}
    document = json.loads(data[:_MAX_CONFIG_SIZE]) if data.strip() else {}
    if not isinstance(document, dict):
        raise ValueError  # noqa: TRY004 - as for invalid JSON
    return document


def _settings_error(path: Path, reason: str) -> SettingsError:
    return SettingsError(f"{path} {reason}", hint=f"fix {path}, or set DOCKER_CONFIG to another directory")


def _get_object(path: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _settings_error(path, f"is malformed: {key} is not an object")
    return value


def _check_helper_name(path: Path, key: str, name: object) -> str:
    """Return a valid helper name, which is part of a program name; empty if ``credsStore`` is not set."""
    if name in (None, "") and key == "credsStore":
        return ""
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise _settings_error(path, f"is malformed: {key} is not a valid helper name")
    return name


def _parse_auth_entry(path: Path, host: str, entry: object) -> Credential:
    def read_text(key: str) -> str:
        value = entry.get(key) if isinstance(entry, dict) else 0
        if value is None:
            return ""
        if not isinstance(value, str):
            raise _settings_error(path, f"is malformed: auths: {host}: {key} is not a string")
        if not _is_unicode(value):
            raise _settings_error(path, f"is malformed: auths: {host}: {key} has an unpaired surrogate")
        return value

    username, password = read_text("username"), read_text("password")
    if auth := read_text("auth"):
        username, password = _decode_auth(path, host, auth)
    return Credential(
        username=username,
        password=password,
        identity_token=read_text("identitytoken"),
        registry_token=read_text("registrytoken"),
    )


def _decode_auth(path: Path, host: str, auth: str) -> tuple[str, str]:
    """Return username and password of ``auth``: base64 of ``USERNAME:PASSWORD``, as in RFC 7617."""
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except ValueError:  # binascii.Error and UnicodeError among others
        colon = ""
    if not colon:
        raise _settings_error(path, f"is malformed: auths: {host}: auth is not base64 of USERNAME:PASSWORD")
    return username, password.strip("\x00")


def _parse_helper_output(output: str) -> Credential | None:
    """Return the credential in a helper's output; None if it is invalid."""
    try:
        document = json.loads(output)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not all(isinstance(value, str) and _is_unicode(value) for value in (username, secret)):
        return None
    if username == _TOKEN_USERNAME:
        return Credential(identity_token=secret)
    return Credential(username=username, password=secret)


def _is_unicode(text: str) -> bool:
    """Return False for text with unpaired surrogates, which JSON can express and nothing can send."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _strip_url(key: str) -> str:
    """Return the host of a key of ``auths``, which may be a URL."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]
