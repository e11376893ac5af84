"""URLs that a registry may refer to, and hosts that may receive its credentials.

A registry sends URLs of its token server (``WWW-Authenticate: Bearer realm=...``) and of its blob store
(redirects, upload locations). Both are untrusted input, and subject to these rules:

* Plain HTTP is allowed on the loopback interface only, and https never redirects to http.
* A redirect never leads further inwards: a public registry cannot refer to a private network, only a
  registry on the loopback interface to the loopback interface, and none to link-local addresses, where
  cloud metadata services are.
* Credentials are sent to the registry's host, or to a token server that belongs to the same domain.

The rules have no side effects; DNS lookups are passed in as a function.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from buildkit_tasks.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Url", "check_redirect", "is_loopback", "is_trusted_realm", "resolve_host"]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_URL_LENGTH = 16384
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?", re.ASCII)
_NAT64_PREFIX = ipaddress.IPv6Network("64:ff9b::/96")

# Token servers in another domain than their registries.
_TOKEN_SERVERS = {"scw.cloud": "api.scaleway.com"}
# Domains below which anybody can register a name, so that their subdomains do not trust each other.
_PUBLIC_SUFFIXES = frozenset(
    {
        *("amazonaws.com", "appspot.com", "awsapps.com", "on.aws", "cloudfront.net"),
        *("azure.com", "azurecr.io", "azureedge.net", "azurewebsites.net", "cloudapp.net", "windows.net"),
        *("googleapis.com", "googleusercontent.com", "pkg.dev", "run.app", "web.app"),
        *("cloudflarestorage.com", "pages.dev", "r2.dev", "trycloudflare.com", "workers.dev"),
        *("github.io", "githubusercontent.com", "gitlab.io", "herokuapp.com", "fly.dev", "vercel.app"),
        *("digitaloceanspaces.com", "ondigitalocean.app", "duckdns.org", "nip.io", "sslip.io", "ts.net"),
        *("ngrok.app", "ngrok.dev", "ngrok.io", "ngrok-free.app"),
    }
)
# Second-level labels of country domains: example.co.uk is a registrable domain, co.uk is not.
_COUNTRY_SECOND_LEVELS = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gov", "gv", "ltd", "mil", "ne", "net", "nom", "or", "org", "sch")
)
_COUNTRY_CODE_LENGTH = 2


class _NetworkScope(enum.IntEnum):
    """The scope of an address, from the outside inwards."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A parsed http or https URL; requests are composed of these parts.

    ``target`` is path and query. It is never shown, as it may contain a signature.
    """

    scheme: str
    host: str
    port: int
    target: str = field(default="/", repr=False)

    @classmethod
    def parse(cls, text: str, base: Url | None = None, *, sender: str = "") -> Url:
        """Parse a URL, relative to ``base`` if given; user information is dropped.

        ``sender`` is named in the :class:`RegistryError` for an invalid URL.
        """
        sender_name = sender or (base.netloc if base else "a registry")
        if len(text) > _MAX_URL_LENGTH or any(ord(letter) <= ord(" ") or letter == "\x7f" for letter in text):
            raise RegistryError(f"{sender_name} sent an invalid URL")
        try:
            parts = urlsplit(urljoin(base.text, text) if base else text)
            scheme, host = parts.scheme.lower(), _parse_host(parts.hostname or "")
            default_port = _DEFAULT_PORTS[scheme]
            port = parts.port or default_port
        except (ValueError, KeyError):
            raise RegistryError(f"{sender_name} sent an invalid http or https URL") from None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme=scheme, host=host, port=port, target=target)

    @property
    def netloc(self) -> str:
        """Host and port as in a URL, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, as in ``https://example.org:8443``."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def text(self) -> str:
        """The whole URL."""
        return f"{self.origin}{self.target}"

    def with_target(self, target: str) -> Url:
        """Return the URL of another path and query on the same server."""
        return Url(scheme=self.scheme, host=self.host, port=self.port, target=target)


def _parse_host(text: str) -> str:
    if ":" in text and "%" not in text:
        return str(ipaddress.IPv6Address(text))
    name = text.removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError
    return name


def is_loopback(host: str) -> bool:
    """Return True for ``localhost``, 127.0.0.0/8 and ::1; names are not resolved."""
    address = _parse_ip_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def resolve_host(host: str) -> tuple[str, ...]:
    """Return the addresses of a host name; none if it does not resolve, as behind a proxy."""
    try:
        return tuple({str(info[4][0]) for info in socket.getaddrinfo(host, None)})
    except (OSError, UnicodeError):
        return ()


def check_redirect(
    registry_url: Url, source: Url, target: Url, resolve: Callable[[str], Sequence[str]]
) -> None:
    """Raise :class:`RegistryError` if the registry must not refer from ``source`` to ``target``.

    A name may resolve to another address when it is connected to. As it is https, that server still needs
    a certificate for the name.
    """
    if target.scheme == "http" and source.scheme == "https":
        raise _redirect_error(registry_url, target, "plain http after https")
    if target.scheme == "http" and not is_loopback(target.host):
        raise _redirect_error(registry_url, target, "plain http is allowed on the loopback interface only")
    if target.host == registry_url.host:
        return
    scope = _classify_host(target.host, resolve)
    if scope is _NetworkScope.FORBIDDEN:
        raise _redirect_error(registry_url, target, "a link-local, multicast or unspecified address")
    own_scope = _classify_host(registry_url.host, resolve)
    if scope > own_scope:
        reason = f"a {scope.name.lower()} address, while its own is {own_scope.name.lower()}"
        raise _redirect_error(registry_url, target, reason)


def _redirect_error(registry_url: Url, target: Url, reason: str) -> RegistryError:
    return RegistryError(
        f"the registry {registry_url.netloc} must not refer to {target.origin}: {reason}",
        hint=f"report it to the operator of {registry_url.netloc}",
    )


def _classify_host(host: str, resolve: Callable[[str], Sequence[str]]) -> _NetworkScope:
    if host == "localhost" or host.endswith(".localhost"):
        return _NetworkScope.LOOPBACK
    literal_address = _parse_ip_address(host)
    addresses = (
        [literal_address]
        if literal_address is not None
        else [_parse_ip_address(text) for text in resolve(host)]
    )
    return max(
        (_classify_address(address) for address in addresses if address is not None),
        default=_NetworkScope.PUBLIC,
    )


def _classify_address(address: IPAddress) -> _NetworkScope:
    if address.is_loopback:
        return _NetworkScope.LOOPBACK
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return _NetworkScope.FORBIDDEN
    return _NetworkScope.PUBLIC if address.is_global else _NetworkScope.PRIVATE


def _parse_ip_address(host: str) -> IPAddress | None:
    """Return the address of a literal host, the IPv4 address if one is embedded; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64_PREFIX:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def is_trusted_realm(registry_url: Url, realm: Url) -> bool:
    """Return True if a token server may receive the credentials of the registry.

    It may on the registry's host with any port (self-managed GitLab), and over https in the same
    registrable domain: auth.docker.io for registry-1.docker.io, gitlab.com for registry.gitlab.com.
    """
    if realm.scheme != "https" and not (is_loopback(realm.host) and is_loopback(registry_url.host)):
        return False
    if realm.host == registry_url.host:
        return True
    registry_domain = _registrable_domain(registry_url.host)
    return (
        bool(registry_domain)
        and realm.scheme == "https"
        and (
            _registrable_domain(realm.host) == registry_domain
            or _TOKEN_SERVERS.get(registry_domain) == realm.host
        )
    )


def _registrable_domain(host: str) -> str:
    """Return the domain that belongs to one owner; empty if that is not certain.

    A short list of shared domains is used instead of the public suffix list.
    """
    labels = host.split(".")
    if _parse_ip_address(host) is not None or len(labels) < 2:  # noqa: PLR2004 - at least a name and a top-level domain
        return ""
    if any(".".join(labels[start:]) in _PUBLIC_SUFFIXES for start in range(len(labels))):
        return ""
    is_country_domain = len(labels[-1]) == _COUNTRY_CODE_LENGTH and labels[-2] in _COUNTRY_SECOND_LEVELS
    label_count = 3 if is_country_domain else 2
    return ".".join(labels[-label_count:]) if len(labels) >= label_count else ""
