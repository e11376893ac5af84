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
    from buildkit_tasks.oci.registry.options import RegistryOptions
    from buildkit_tasks.oci.registry.url_policy import Url

__all__ = [
    "RETRY_LATER",
    "ManifestUnknown",
    "RequestRejected",
    "TransientError",
    "busy_error",
    "classify_error",
    "describe_cause",
    "timeout_error",
]

RETRY_LATER = "try again later"
_TOO_MANY_REQUESTS = 429


class TransientError(RegistryError):
    """A connection broke; asking again may help."""


class RequestRejected(RegistryError):
    """The registry has answered no: nothing was changed by what was asked."""


class ManifestUnknown(RegistryError):
    """The registry has nothing by that name."""


def busy_error(url: Url, status: int, retry_after: float | None) -> RegistryError:
    """A server that has answered 429 or 5xx until we gave up; ``asked`` seconds were to be waited."""
    wait = f" and asks to wait {retry_after:.0f} s" if retry_after else ""
    hint = f"wait {retry_after:.0f} s, then try again" if retry_after else RETRY_LATER
    if status == _TOO_MANY_REQUESTS:
        hint += f"; `docker login {url.netloc}` may raise the limit"
        return RegistryError(f"{url.origin} says 429, too many requests,{wait}", hint=hint)
    return RegistryError(f"{url.origin} answers {status}{wait}, again and again", hint=hint)


def classify_error(url: Url, error: Exception, options: RegistryOptions) -> RegistryError:
    """What went wrong, in words; an :class:`Interruption` if asking again may help."""
    origin, hint = url.origin, f"try it by hand: curl -sS -o /dev/null {url.origin}/v2/"
    if isinstance(error, requests.ConnectTimeout):
        return RegistryError(
            f"{origin} does not answer: no connection within {options.connect_timeout:g} s", hint=hint
        )
    if isinstance(error, requests.ReadTimeout) or _is_send_timeout(error):
        return timeout_error(url, options.read_timeout)
    if isinstance(error, requests.exceptions.SSLError):
        return _tls_error(url, error, options)
    if isinstance(error, requests.exceptions.ProxyError):
        hint = "look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        return RegistryError(
            f"the proxy for {origin} does not let us through: {describe_cause(error)}", hint=hint
        )
    inner = error.args[0] if error.args else None
    if isinstance(error, requests.ConnectionError) and isinstance(inner, ProtocolError | OSError):
        return TransientError(f"{origin} broke off: {describe_cause(error)}", hint=RETRY_LATER)
    return RegistryError(f"{origin} cannot be reached: {describe_cause(error)}", hint=hint)


def timeout_error(url: Url, read_timeout: float) -> RegistryError:
    """A server that takes a request and says nothing, or drips."""
    return RegistryError(
        f"{url.origin} does not answer: nothing, or next to nothing, within {read_timeout:g} s",
        hint=RETRY_LATER,
    )


def _is_send_timeout(error: Exception) -> bool:
    """Whether a body was sent and nobody read it for as long as that may take."""
    return type(error) is requests.ConnectionError and any(
        isinstance(each, TimeoutError) for each in _collect_causes(error)
    )


def _tls_error(url: Url, error: Exception, options: RegistryOptions) -> RegistryError:
    causes = list(_collect_causes(error))
    ssl_errors = [each for each in causes if isinstance(each, ssl.SSLError)]
    reason = describe_cause(error)
    if ssl_errors:
        reason = getattr(ssl_errors[-1], "verify_message", "") or ssl_errors[-1].reason or reason
    certificate_dir = options.certificate_dirs[0] if options.certificate_dirs else "/etc/docker/certs.d"
    return RegistryError(
        f"{url.origin} cannot be trusted: TLS failed: {reason}",
        hint=f"put the certificate of its authority into {certificate_dir}/{url.netloc}/ca.crt",
    )


def _collect_causes(error: BaseException) -> list[BaseException]:
    """An exception and those within it: requests and urllib3 wrap each other's several times."""
    causes: list[BaseException] = []
    pending: list[object] = [error]
    while pending and len(causes) < 16:  # noqa: PLR2004 - far more than there are
        current = pending.pop(0)
        if isinstance(current, BaseException) and current not in causes:
            causes.append(current)
            pending += [
                *current.args,
                getattr(current, "reason", None),
                current.__cause__,
                current.__context__,
            ]
    return causes


def describe_cause(error: BaseException) -> str:
    """The operating system's words for it, or the kind of the innermost exception.

    The libraries' own messages may hold whole URLs, with the signatures in them.
    """
    causes = _collect_causes(error)
    for each in causes:
        if isinstance(each, NameResolutionError):
            return "its name does not resolve"
        if isinstance(each, OSError) and not isinstance(each, requests.RequestException) and each.strerror:
            return str(each.strerror)
    return type(causes[-1]).__name__
