"""What can go wrong on the way to a registry, in words and with the next command.

Messages name hosts, never whole URLs: those of blob stores are signed.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import requests
from urllib3.exceptions import NameResolutionError, ProtocolError

from buildkit_tasks.errors import RegistryError

if TYPE_CHECKING:
    from buildkit_tasks.oci.registry.options import Access
    from buildkit_tasks.oci.registry.url_policy import Place

__all__ = ["LATER", "Interruption", "Missing", "Refused", "busy", "problem_of", "reason_of", "silence"]

LATER = "try again later"
_TOO_MANY = 429


class Interruption(RegistryError):
    """A connection broke; asking again may help."""


class Refused(RegistryError):
    """The registry has answered no: nothing was changed by what was asked."""


class Missing(RegistryError):
    """The registry has nothing by that name."""


def busy(place: Place, status: int, asked: float | None) -> RegistryError:
    """A server that has answered 429 or 5xx until we gave up; ``asked`` seconds were to be waited."""
    wait = f" and asks to wait {asked:.0f} s" if asked else ""
    hint = f"wait {asked:.0f} s, then try again" if asked else LATER
    if status == _TOO_MANY:
        hint += f"; `docker login {place.netloc}` may raise the limit"
        return RegistryError(f"{place.origin} says 429, too many requests,{wait}", hint=hint)
    return RegistryError(f"{place.origin} answers {status}{wait}, again and again", hint=hint)


def problem_of(place: Place, error: Exception, access: Access) -> RegistryError:
    """What went wrong, in words; an :class:`Interruption` if asking again may help."""
    origin, hint = place.origin, f"try it by hand: curl -sS -o /dev/null {place.origin}/v2/"
    if isinstance(error, requests.ConnectTimeout):
        return RegistryError(
            f"{origin} does not answer: no connection within {access.connect:g} s", hint=hint
        )
    if isinstance(error, requests.ReadTimeout) or _nobody_took(error):
        return silence(place, access.idle)
    if isinstance(error, requests.exceptions.SSLError):
        return _distrust(place, error, access)
    if isinstance(error, requests.exceptions.ProxyError):
        hint = "look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        return RegistryError(f"the proxy for {origin} does not let us through: {reason_of(error)}", hint=hint)
    inner = error.args[0] if error.args else None
    if isinstance(error, requests.ConnectionError) and isinstance(inner, ProtocolError | OSError):
        return Interruption(f"{origin} broke off: {reason_of(error)}", hint=LATER)
    return RegistryError(f"{origin} cannot be reached: {reason_of(error)}", hint=hint)


def silence(place: Place, idle: float) -> RegistryError:
    """A server that takes a request and says nothing, or drips."""
    return RegistryError(
        f"{place.origin} does not answer: nothing, or next to nothing, within {idle:g} s", hint=LATER
    )


def _nobody_took(error: Exception) -> bool:
    """Whether a body was sent and nobody read it for as long as that may take."""
    return type(error) is requests.ConnectionError and any(
        isinstance(each, TimeoutError) for each in _chain(error)
    )


def _distrust(place: Place, error: Exception, access: Access) -> RegistryError:
    chain = list(_chain(error))
    found = [each for each in chain if isinstance(each, ssl.SSLError)]
    why = reason_of(error)
    if found:
        why = getattr(found[-1], "verify_message", "") or found[-1].reason or why
    folder = access.certificates[0] if access.certificates else "/etc/docker/certs.d"
    return RegistryError(
        f"{place.origin} cannot be trusted: TLS failed: {why}",
        hint=f"put the certificate of its authority into {folder}/{place.netloc}/ca.crt",
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and those within it: requests and urllib3 wrap each other's several times."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(found) < 16:  # noqa: PLR2004 - far more than there are
        here = todo.pop(0)
        if isinstance(here, BaseException) and here not in found:
            found.append(here)
            todo += [*here.args, getattr(here, "reason", None), here.__cause__, here.__context__]
    return found


def reason_of(error: BaseException) -> str:
    """The operating system's words for it, or the kind of the innermost exception.

    The libraries' own messages may hold whole URLs, with the signatures in them.
    """
    chain = _chain(error)
    for each in chain:
        if isinstance(each, NameResolutionError):
            return "its name does not resolve"
        if isinstance(each, OSError) and not isinstance(each, requests.RequestException) and each.strerror:
            return str(each.strerror)
    return type(chain[-1]).__name__
