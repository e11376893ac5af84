"""An image in a registry, read as a stream.

OCI distribution specification v1.1, "Pulling manifests" and "Pulling blobs". Like every source it gives
bytes; :mod:`buildkit_tasks.oci.source` checks their digests. Nothing is written anywhere.
"""

from __future__ import annotations

import io
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from buildkit_tasks.errors import MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.reference import DOCKER_IO, Reference
from buildkit_tasks.oci.registry.credentials import load_credentials
from buildkit_tasks.oci.registry.options import Access
from buildkit_tasks.oci.registry.tls import certificate_folders
from buildkit_tasks.oci.registry.url_policy import Place, is_loopback
from buildkit_tasks.system.command import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.registry.repository import Server

__all__ = ["Registry", "home_of", "open_registry"]

_HUB = "registry-1.docker.io"  # where docker.io's images really are

_Found = TypeVar("_Found")


@contextmanager
def open_registry(
    reference_text: str, *, mirrors: Sequence[str] = (), access: Access | None = None
) -> Iterator[Registry]:
    """The image that a reference names; connections are opened when it is read and closed at the end.

    ``mirrors`` (URLs) are asked for docker.io's images first, in their order. Raises
    :class:`UsageError` for bad words, :class:`SettingsError` for a malformed docker config.json;
    reading raises :class:`RegistryError` for a registry that cannot be reached or refuses.
    """
    reference = Reference.parse(reference_text)
    access = Access() if access is None else access
    store = load_credentials(access.environ, access.run)
    places = [*_mirrors(reference, mirrors), (reference.host, home_of(reference, access))]
    from buildkit_tasks.oci.registry.repository import Server

    with ExitStack() as stack:
        servers = [Server(host, place, reference, store, access) for host, place in places]
        for server in servers:
            stack.callback(server.close)
        yield Registry(servers)


class Registry:
    """The image of one reference, at the servers that may have it: mirrors first, its registry last."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = list(servers)
        self._root: tuple[Descriptor, bytes] | None = None

    def root(self) -> Descriptor:
        """The manifest or index that the reference names; it is fetched once.

        Its digest is computed, and compared with the one that was asked for and with the one that
        the registry states.
        """
        if self._root is None:
            self._root = self._first(lambda server: server.manifest())
        return self._root[0]

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Stream what lies under that digest here; other addresses (``urls``) are never fetched."""
        if self._root is not None and descriptor.digest == self._root[0].digest:
            return io.BytesIO(self._root[1])
        return self._first(lambda server: server.open(descriptor))

    def _first(self, ask: Callable[[Server], _Found]) -> _Found:
        """The first good answer; a mirror that gives none is not asked again."""
        *mirrors, registry = self._servers
        for mirror in mirrors:
            try:
                return ask(mirror)
            except (MalformedImage, RegistryError):
                self._servers.remove(mirror)
        return ask(registry)


def home_of(reference: Reference, access: Access) -> Place:
    """Where the registry itself is: by https, but on the loopback interface without certificates."""
    netloc = _HUB if reference.host == DOCKER_IO else reference.host
    place = Place.parse(f"https://{netloc}")
    if is_loopback(place.host) and not any(certificate_folders(netloc, access)):
        return Place.parse(f"http://{netloc}")
    return place


def _mirrors(reference: Reference, mirrors: Sequence[str]) -> Iterator[tuple[str, Place]]:
    """The mirrors of docker.io; other registries have none, as in Docker."""
    for text in mirrors if reference.host == DOCKER_IO else ():
        place = _mirror(text)
        yield place.netloc, place


def _mirror(text: str) -> Place:
    hint = "write it as https://HOST[:PORT]; plain http is for the loopback interface alone"
    try:
        place = Place.parse(text if "://" in text else f"https://{text}")
    except RegistryError:
        raise UsageError(f"{redact(text)!r} is no mirror's URL", hint=hint) from None
    if place.target != "/" or (place.scheme == "http" and not is_loopback(place.host)):
        raise UsageError(f"{redact(text)!r} is no mirror that can be used", hint=hint)
    return place
