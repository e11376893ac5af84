"""Which address a registry may send us to, and which may see its credentials.

A registry answers with addresses: of its token server (``WWW-Authenticate: Bearer realm=...``), of the
store where its blobs lie (redirects). Both are hostile input. The rules here are pure, but for one
look-up of a host's addresses, which is passed in.

* Plain HTTP is for the loopback interface alone, and nothing leads from https to http.
* Nobody leads us further in than they are themselves: a public registry not into a private network, none
  but a loopback one to the loopback interface, and none at all to link-local addresses, where clouds
  keep their secrets.
* Credentials go to the registry's own host, or to a token server that plainly belongs to it.
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

# Token servers that bear another name than the registries whose credentials they take.
_TOKEN_SERVERS = {"scw.cloud": "api.scaleway.com"}
# Domains under which anybody may have a name: none of these names speaks for another.
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
# The second level under which a country's domains are given out: example.co.uk belongs to one owner.
_COUNTRY_SECOND_LEVELS = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gov", "gv", "ltd", "mil", "ne", "net", "nom", "or", "org", "sch")
)
_COUNTRY_CODE_LENGTH = 2


class _NetworkScope(enum.IntEnum):
    """How far in an address lies."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """An absolute http or https URL taken apart: what is sent is put together from these parts again.

    ``target`` is path and query. It may be signed, as a blob store's is, and is never shown.
    """

    scheme: str
    host: str
    port: int
    target: str = field(default="/", repr=False)

    @classmethod
    def parse(cls, text: str, base: Url | None = None, *, sender: str = "") -> Url:
        """Read a URL, relative to ``base`` where there is one; user information in it is dropped.

        ``by`` is who gave it, for the :class:`RegistryError`.
        """
        sender_name = sender or (base.netloc if base else "a registry")
        if len(text) > _MAX_URL_LENGTH or any(ord(letter) <= ord(" ") or letter == "\x7f" for letter in text):
            raise RegistryError(f"an address that {sender_name} gave is no URL")
        try:
            parts = urlsplit(urljoin(base.text, text) if base else text)
            scheme, host = parts.scheme.lower(), _parse_host(parts.hostname or "")
            port = parts.port or _DEFAULT_PORTS[scheme]
        except (ValueError, KeyError):
            raise RegistryError(f"an address that {sender_name} gave is no http or https URL") from None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme=scheme, host=host, port=port, target=target)

    @property
    def netloc(self) -> str:
        """Host and port as they stand in a URL; a scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def text(self) -> str:
        """The whole URL."""
        return f"{self.origin}{self.target}"

    def with_target(self, target: str) -> Url:
        """Another path of the same server."""
        return Url(scheme=self.scheme, host=self.host, port=self.port, target=target)


def _parse_host(text: str) -> str:
    if ":" in text and "%" not in text:
        return str(ipaddress.IPv6Address(text))
    name = text.removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError
    return name


def is_loopback(host: str) -> bool:
    """Whether a host, as written, is this machine: ``localhost``, 127.0.0.0/8 or ::1."""
    address = _parse_ip_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def resolve_host(host: str) -> tuple[str, ...]:
    """What a name resolves to here; nothing if it does not, as behind a proxy."""
    try:
        return tuple({str(info[4][0]) for info in socket.getaddrinfo(host, None)})
    except (OSError, UnicodeError):
        return ()


def check_redirect(
    registry_url: Url, source: Url, target: Url, resolve: Callable[[str], Sequence[str]]
) -> None:
    """Refuse to follow the registry at ``home`` from ``start`` to ``target`` against the rules above.

    A name may resolve to something else by the time it is connected to; then it still has to show a
    certificate for that name, for it is https.
    """
    if target.scheme == "http" and source.scheme == "https":
        raise _redirect_error(registry_url, target, "from https to plain http")
    if target.scheme == "http" and not is_loopback(target.host):
        raise _redirect_error(
            registry_url, target, "to plain http, which is for the loopback interface alone"
        )
    if target.host == registry_url.host:
        return
    scope = _classify_host(target.host, resolve)
    if scope is _NetworkScope.FORBIDDEN:
        raise _redirect_error(registry_url, target, "to an address that no registry has")
    if scope > _classify_host(registry_url.host, resolve):
        raise _redirect_error(
            registry_url, target, f"to a {scope.name.lower()} address, which it does not have itself"
        )


def _redirect_error(registry_url: Url, target: Url, reason: str) -> RegistryError:
    return RegistryError(
        f"the registry {registry_url.netloc} leads to {target.origin}: {reason}; that is not followed",
        hint=f"ask whoever runs {registry_url.netloc}: no sound registry does that",
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
    """The address that a host is written as; of an IPv4 address within an IPv6 one, that one."""
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
    """Whether a token server may see the credentials that are kept for the registry.

    It may on the registry's own host, on whatever port (GitLab's own registries), and over https on a
    host of the same owner: auth.docker.io for registry-1.docker.io, gitlab.com for
    registry.gitlab.com. Names under a domain that many owners share do not speak for each other.
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
    """The domain that was given to one owner, or nothing where that cannot be told.

    The public suffix list would tell for certain; a short list errs on the side of "cannot be told".
    """
    labels = host.split(".")
    if _parse_ip_address(host) is not None or len(labels) < 2:  # noqa: PLR2004 - a name and a top-level domain
        return ""
    if any(".".join(labels[start:]) in _PUBLIC_SUFFIXES for start in range(len(labels))):
        return ""
    is_country_domain = len(labels[-1]) == _COUNTRY_CODE_LENGTH and labels[-2] in _COUNTRY_SECOND_LEVELS
    label_count = 3 if is_country_domain else 2
    return ".".join(labels[-label_count:]) if len(labels) >= label_count else ""
