"""Image references: ``[HOST[:PORT]/]PATH[:TAG][@DIGEST]``.

The grammar and the short forms of github.com/distribution/reference: ``alpine`` means
``docker.io/library/alpine:latest``. The text is split at its separators before each component is
matched, so that parsing takes linear time for any input.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import dataclass

from buildkit_tasks.errors import MalformedImage, UsageError
from buildkit_tasks.oci.model import Digest

__all__ = ["DOCKER_IO", "Reference", "check_no_login"]

DOCKER_IO = "docker.io"
_LEGACY_DOCKER_IO = "index.docker.io"  # the former name of docker.io
_MAX_REFERENCE_LENGTH = 1024  # longer than the longest host, path, tag and digest together
_MAX_REPOSITORY_LENGTH = 255
_MAX_PORT = 65535
_MAX_QUOTED_LENGTH = 160

_PATH_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*", re.ASCII)
_DOMAIN_COMPONENT = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST_SUFFIX = re.compile(r"@sha\d+[:=][^@]*\Z", re.ASCII)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FORMAT_HINT = "write it as registry/name:tag or registry/name@sha256:..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A registry's host (and port), a repository in it, and a tag, a digest or both.

    With a digest the tag is informational only.
    """

    host: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference, short forms included. Raises :class:`UsageError` if it is not valid."""
        if not text:
            raise _invalid_reference_error(text, "it is empty")
        check_no_login(text)
        if len(text) > _MAX_REFERENCE_LENGTH:
            raise _invalid_reference_error(text, f"it is longer than {_MAX_REFERENCE_LENGTH} characters")
        if "://" in text:
            raise UsageError(f"{_quote_text(text)} is a URL, not an image reference", hint=_FORMAT_HINT)
        named_part, separator, digest = text.partition("@")
        name, tag = _split_tag(named_part)
        host, repository = _split_host(name, text)
        if tag is not None and not _TAG.fullmatch(tag):
            reason = f"{_quote_text(tag)} is not a valid tag: at most 128 letters, digits, '_', '.' and '-'"
            raise _invalid_reference_error(text, reason)
        parsed_digest = _parse_digest(digest, named_part) if separator else None
        return cls(
            host=host,
            repository=repository,
            tag=tag or ("" if parsed_digest else "latest"),
            digest=parsed_digest,
        )

    @property
    def identifier(self) -> str:
        """The digest if there is one, else the tag: ``<reference>`` in the registry's URLs."""
        return self.tag if self.digest is None else str(self.digest)

    @property
    def name(self) -> str:
        """Host and repository, without tag or digest."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def check_no_login(text: str) -> None:
    """Raise :class:`UsageError` for ``USER:PASSWORD@HOST/...``, without the password.

    A password may contain ``/`` and ``@``; what precedes the ``@`` of a digest is not a login.
    """
    login, _, location = _DIGEST_SUFFIX.sub("", text).rpartition("@")
    scheme, separator, rest = login.partition("://")
    login = rest if separator else scheme
    host, slash, _ = location.partition("/")
    if login and slash and ("/" not in login or ":" in login):
        raise UsageError(
            f"{_quote_text(f'***@{location}')} contains a login, which an image name cannot",
            hint=f"docker login {shlex.quote(host)}",
        )


def _split_tag(named_part: str) -> tuple[str, str | None]:
    """Split a name from its tag; a colon before the last slash belongs to a port."""
    name, colon, tag = named_part.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (named_part, None)


def _split_host(name: str, text: str) -> tuple[str, str]:
    """Return the registry's host and the repository.

    The first component is a host if it has a dot, a colon or an upper-case letter, or is ``localhost``.
    """
    first, slash, rest = name.partition("/")
    is_host = slash and (first == "localhost" or first != first.lower() or "." in first or ":" in first)
    host, path = (first, rest) if is_host else (DOCKER_IO, name)
    if host == _LEGACY_DOCKER_IO:
        host = DOCKER_IO
    if host == DOCKER_IO and "/" not in path:
        if _IMAGE_ID.fullmatch(path):
            raise _invalid_reference_error(
                text, "64 hex digits are an image ID, which registries do not know"
            )
        path = f"library/{path}"
    _check_host(host, text)
    _check_path(path, text)
    return host, path


def _check_path(path: str, text: str) -> None:
    if len(path) > _MAX_REPOSITORY_LENGTH:
        raise _invalid_reference_error(
            text, f"its repository is longer than {_MAX_REPOSITORY_LENGTH} characters"
        )
    for component in path.split("/"):
        if not _PATH_COMPONENT.fullmatch(component):
            _reject_component(component, text)


def _reject_component(component: str, text: str) -> None:
    if component != component.lower() and _PATH_COMPONENT.fullmatch(component.lower()):
        raise UsageError(
            f"{_quote_text(text)} is not a valid image reference: repository names are lower case",
            hint=f"write {component.lower()} instead of {component}",
        )
    subject = (
        f"{_quote_text(component)} is not a valid path component" if component else "a component is empty"
    )
    raise _invalid_reference_error(
        text, f"{subject}: it has lower-case letters and digits, separated by one '.', '_', '__' or by '-'"
    )


def _check_host(host: str, text: str) -> None:
    if host.startswith("["):
        address, bracket, port_part = host[1:].partition("]")
        is_valid = (
            bool(bracket)
            and _is_ipv6(address)
            and (not port_part or (port_part.startswith(":") and _is_port(port_part[1:])))
        )
    else:
        labels, colon, port = host.partition(":")
        is_valid = all(_DOMAIN_COMPONENT.fullmatch(label) for label in labels.split(".")) and (
            not colon or _is_port(port)
        )
    if not is_valid:
        raise _invalid_reference_error(text, f"{_quote_text(host)} is not a valid registry host and port")


def _is_ipv6(address: str) -> bool:
    try:
        return "%" not in address and bool(ipaddress.IPv6Address(address))
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return (
        text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_PORT)) and 0 < int(text) <= _MAX_PORT
    )


def _parse_digest(text: str, named_part: str) -> Digest:
    try:
        return Digest(text)
    except MalformedImage as error:
        corrected = text.replace("=", ":", 1)
        hint = (
            _FORMAT_HINT if corrected == text else f"write the digest with a colon: {named_part}@{corrected}"
        )
        raise UsageError(error.message, hint=hint[:_MAX_REFERENCE_LENGTH]) from None


def _invalid_reference_error(text: str, reason: str) -> UsageError:
    return UsageError(f"{_quote_text(text)} is not a valid image reference: {reason}", hint=_FORMAT_HINT)


def _quote_text(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED_LENGTH else f"{text[:_MAX_QUOTED_LENGTH]}...")
