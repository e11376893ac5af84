"""Check ``--secret`` and ``--ssh`` before the build, and refuse secrets in build arguments and URLs.

buildx reads a secret's value from a file or a variable that is given by name, so that no value is in an
argument list. It reports a missing file late, and a missing variable not at all: the step then runs without
the secret. Messages of this module contain names only, never values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import parse_csv_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["check_build_argument", "check_context_url", "check_secrets", "check_ssh", "redact_userinfo"]

_SECRET_KEYS = ("id", "type", "src", "source", "env")
_HINT = "--secret id=NAME,env=VARIABLE or --secret id=NAME,src=FILE"
_MAX_SECRET_SIZE = 500 * 1024  # BuildKit's secretsprovider.MaxSecretSize
_SECRET_NAMES = {"PASSWORD", "PASSWD", "SECRET", "TOKEN", "APIKEY", "CREDENTIAL", "CREDENTIALS"}
_SECRET_PHRASES = ("API_KEY", "PRIVATE_KEY", "ACCESS_KEY", "SECRET_KEY")
# With https even a user name alone is a secret: tokens are passed as one.
_URL_PASSWORD = re.compile(r"://[^/\s@:]*:[^/\s@]+@|https?://[^/\s@]+@", re.IGNORECASE)
_URL_USERINFO = re.compile(r"://[^/\s@]+@")
_DIGEST = re.compile(r"[a-z0-9+._-]+:[0-9a-fA-F]{32,}\Z")


def check_build_argument(argument: str) -> None:
    """Raise :class:`UsageError` for a build argument that looks like a secret: the image contains it."""
    name = argument.partition("=")[0]
    normalized = name.upper().replace("-", "_")
    if _SECRET_NAMES & set(normalized.split("_")) or any(phrase in normalized for phrase in _SECRET_PHRASES):
        raise UsageError(
            f"build argument {name} looks like a secret, and build arguments are stored in the image",
            hint=f"--secret id={name},env={name} and RUN --mount=type=secret,id={name}",
        )
    if _URL_PASSWORD.search(argument):
        raise UsageError(
            f"build argument {name} has a URL with a password, and build arguments are stored in the image",
            hint=f"--secret id={name},env={name} and RUN --mount=type=secret,id={name}",
        )


def check_context_url(label: str, url: str) -> None:
    """Raise :class:`UsageError` for a URL with a password or token.

    It would be visible in the process table and in the progress. BuildKit also writes it to provenance of
    ``mode=max`` (attribute ``git.fullurl``, as measured), which is published with the image.
    """
    if _URL_PASSWORD.search(url):
        raise UsageError(
            f"{label} {_URL_USERINFO.sub('://***@', url)} contains a password or token, which provenance "
            "would publish",
            hint="omit it and add --secret id=GIT_AUTH_TOKEN,env=GIT_AUTH_TOKEN",
        )


def check_secrets(secrets: Iterable[str], environ: Mapping[str, str]) -> None:
    """Raise :class:`UsageError` for a secret without an id, or whose file or variable is missing."""
    for secret in secrets:
        _check_secret(_parse_secret(secret), environ)


def _parse_secret(text: str) -> dict[str, str]:
    try:
        items = [item.partition("=") for item in parse_csv_row(text, "a --secret")]
    except UsageError as error:
        raise UsageError(error.message, hint=_HINT) from None
    if not items or not all(separator for _, separator, _ in items):
        raise UsageError("a --secret is not of the form name=value,...", hint=_HINT)
    fields = {name.lower(): value for name, _, value in items}
    unknown = sorted(set(fields) - set(_SECRET_KEYS))
    if unknown:
        raise UsageError(f"a --secret has the unknown key {', '.join(map(repr, unknown))}", hint=_HINT)
    return fields


def _check_secret(fields: Mapping[str, str], environ: Mapping[str, str]) -> None:
    name = fields.get("id", "")
    if not name:
        raise UsageError("a --secret has no id, which RUN --mount=type=secret needs", hint=_HINT)
    kind = fields.get("type", "")
    if kind not in ("", "file", "env"):
        raise UsageError(f"secret {name}: type={kind} is neither file nor env", hint=_HINT)
    variable, file = fields.get("env", ""), fields.get("src", fields.get("source", ""))
    if kind == "env" and not variable:
        variable, file = file, ""
    if not variable and not file:  # buildx then uses the id as a variable, else as a file
        variable, file = (name, "") if name in environ else ("", name)
        if file and not Path(file).exists():
            raise UsageError(
                f"secret {name}: neither a variable nor a file of that name was found",
                hint=f"--secret id={name},env=VARIABLE, or --secret id={name},src=FILE",
            )
    if file:
        _check_file(f"secret {name}", file)
        if Path(file).stat().st_size > _MAX_SECRET_SIZE:
            raise UsageError(f"secret {name}: {file} exceeds {_MAX_SECRET_SIZE} bytes, the limit of BuildKit")
    elif not environ.get(variable):
        raise UsageError(
            f"secret {name}: the variable {variable} is not set, and the build would run without it",
            hint=f"export {variable}, or --secret id={name},src=FILE",
        )


def check_ssh(ssh_options: Iterable[str], environ: Mapping[str, str]) -> None:
    """Raise :class:`UsageError` for an agent that does not run, or a missing socket or key."""
    for ssh_option in ssh_options:
        name, _, paths = ssh_option.partition("=")
        if not name:
            raise UsageError("an --ssh has no name", hint="--ssh default, or --ssh NAME=SOCKET_OR_KEY")
        if paths:
            for path in paths.split(","):
                if path not in ("raw=true", "raw=false"):
                    _check_exists(f"ssh {name}", path)
        elif not environ.get("SSH_AUTH_SOCK"):
            raise UsageError(
                f"ssh {name}: no agent is running (SSH_AUTH_SOCK is not set)",
                hint=f"eval $(ssh-agent); ssh-add, or --ssh {name}=KEY",
            )
        else:
            _check_exists(f"ssh {name}: the agent's socket", environ["SSH_AUTH_SOCK"])


def _check_file(label: str, path: str) -> None:
    _check_exists(label, path)
    if not Path(path).is_file():
        raise UsageError(f"{label}: {path} is not a file")


def _check_exists(label: str, path: str) -> None:
    if not Path(path).exists():
        raise UsageError(f"{label}: there is no {path}")


def redact_userinfo(text: str) -> str:
    """Return an image reference, or a CSV row with one, with ``***`` for user name and password."""
    head, at, tail = text.rpartition("@")
    if not at or _DIGEST.match(tail):
        return text
    start = max(head.rfind(character) for character in ",=") + 1
    return f"{head[:start]}***@{tail}"
