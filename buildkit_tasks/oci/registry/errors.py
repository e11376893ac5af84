"""Registry errors, and translation of errors of requests and urllib3.

Messages name hosts, never whole URLs: URLs of blob stores carry signatures.
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
    """A connection broke; a retry may succeed."""


class RequestRejected(RegistryError):
    """The registry rejected a request; nothing was changed."""

    error_code = ""  # of the OCI distribution specification, "Error Codes"


class ManifestUnknown(RegistryError):
    """The registry does not have the manifest."""


def busy_error(url: Url, status: int, retry_after: float | None) -> RegistryError:
    """Return the error for repeated 429 or 5xx responses; ``retry_after`` is in seconds."""
    wait = f" and asks to wait {retry_after:.0f} s" if retry_after else ""
    hint = f"wait {retry_after:.0f} s and try again" if retry_after else RETRY_LATER
    if status == _TOO_MANY_REQUESTS:
        hint += f"; `docker login {url.netloc}` may raise the limit"
        return RegistryError(f"{url.origin} answers 429 (too many requests){wait}", hint=hint)
    return RegistryError(f"{url.origin} repeatedly answers {status}{wait}", hint=hint)


def classify_error(url: Url, error: Exception, options: RegistryOptions) -> RegistryError:
    """Translate an error of requests or urllib3; to :class:`TransientError` if a retry may succeed."""
    origin, hint = url.origin, f"curl -sS -o /dev/null {url.origin}/v2/"
    if isinstance(error, requests.ConnectTimeout):
        return RegistryError(
            f"{origin} does not answer: no connection within {options.connect_timeout:g} s", hint=hint
        )
    if isinstance(error, requests.ReadTimeout) or _is_send_timeout(error):
        return timeout_error(url, options.read_timeout)
    if isinstance(error, requests.exceptions.SSLError):
        return _tls_error(url, error, options)
    if isinstance(error, requests.exceptions.ProxyError):
        hint = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        return RegistryError(f"the proxy for {origin} failed: {describe_cause(error)}", hint=hint)
    inner = error.args[0] if error.args else None
    if isinstance(error, requests.ConnectionError) and isinstance(inner, ProtocolError | OSError):
        return TransientError(f"the connection to {origin} broke: {describe_cause(error)}", hint=RETRY_LATER)
    return RegistryError(f"{origin} cannot be reached: {describe_cause(error)}", hint=hint)


def timeout_error(url: Url, read_timeout: float) -> RegistryError:
    """Return the error for a server that sends no response, or sends it too slowly."""
    return RegistryError(
        f"{url.origin} does not answer: no or almost no data within {read_timeout:g} s",
        hint=RETRY_LATER,
    )


def _is_send_timeout(error: Exception) -> bool:
    """Return True if the server did not read a request body in time."""
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
        f"the TLS connection to {url.origin} failed: {reason}",
        hint=f"put the CA certificate of the registry into {certificate_dir}/{url.netloc}/ca.crt",
    )


def _collect_causes(error: BaseException) -> list[BaseException]:
    """Return an exception and all that it wraps; requests and urllib3 nest them in several ways."""
    causes: list[BaseException] = []
    pending: list[object] = [error]
    while pending and len(causes) < 16:  # noqa: PLR2004 - more than ever occur
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
    """Return the operating system's message, or the type of the innermost exception.

    Messages of requests and urllib3 may contain whole URLs with signatures.
    """
    causes = _collect_causes(error)
    for each in causes:
        if isinstance(each, NameResolutionError):
            return "the host name does not resolve"
        if isinstance(each, OSError) and not isinstance(each, requests.RequestException) and each.strerror:
            return str(each.strerror)
    return type(causes[-1]).__name__
