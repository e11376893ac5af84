"""Images in registries as sources (OCI distribution specification v1.1, "Pull").

Like every source it returns unverified blobs; :mod:`buildkit_tasks.oci.source` checks their digests.
Nothing is written to disk.
"""

from __future__ import annotations

import io
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from buildkit_tasks.errors import MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.reference import DOCKER_IO, Reference
from buildkit_tasks.oci.registry.credentials import load_credentials
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.registry.tls import find_certificate_dirs
from buildkit_tasks.oci.registry.url_policy import Url, is_loopback
from buildkit_tasks.system.command import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.registry.repository import Repository

__all__ = ["RegistrySource", "get_registry_url", "open_registry"]

_DOCKER_HUB_HOST = "registry-1.docker.io"  # serves the images of docker.io

_Result = TypeVar("_Result")


@contextmanager
def open_registry(
    reference_text: str, *, mirrors: Sequence[str] = (), options: RegistryOptions | None = None
) -> Iterator[RegistrySource]:
    """Open the image of a reference; connections are made on the first read and closed at the end.

    For images of docker.io, ``mirrors`` (URLs) are tried first, in order. Raises :class:`UsageError` for an
    invalid reference or mirror and :class:`SettingsError` for a malformed config.json. Reading raises
    :class:`RegistryError` if the registry cannot be reached or denies access.
    """
    reference = Reference.parse(reference_text)
    options = RegistryOptions() if options is None else options
    credential_store = load_credentials(options.environ, options.commands)
    endpoints = [*_parse_mirrors(reference, mirrors), (reference.host, get_registry_url(reference, options))]
    from buildkit_tasks.oci.registry.repository import Repository

    with ExitStack() as stack:
        repositories = [
            Repository(host, url, reference, credential_store, options) for host, url in endpoints
        ]
        for repository in repositories:
            stack.callback(repository.close)
        yield RegistrySource(repositories)


class RegistrySource:
    """The image of a reference, at its mirrors and its registry."""

    def __init__(self, repositories: Sequence[Repository]) -> None:
        self._repositories = list(repositories)
        self._root: tuple[Descriptor, bytes] | None = None

    def root_descriptor(self) -> Descriptor:
        """Return the descriptor of the manifest or index, which is fetched once.

        Its digest is computed and compared with the requested one and the one that the registry states.
        """
        if self._root is None:
            self._root = self._try_in_order(lambda repository: repository.get_manifest())
        return self._root[0]

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob of the repository. The descriptor's ``urls`` are ignored."""
        if self._root is not None and descriptor.digest == self._root[0].digest:
            return io.BytesIO(self._root[1])
        return self._try_in_order(lambda repository: repository.open(descriptor))

    def _try_in_order(self, operation: Callable[[Repository], _Result]) -> _Result:
        """Return the result of the first server that succeeds; a mirror that fails is not used again."""
        *mirrors, registry = self._repositories
        for mirror in mirrors:
            try:
                return operation(mirror)
            except (MalformedImage, RegistryError):
                self._repositories.remove(mirror)
        return operation(registry)


def get_registry_url(reference: Reference, options: RegistryOptions) -> Url:
    """Return the URL of the registry: https, or http on the loopback interface without certificates."""
    netloc = _DOCKER_HUB_HOST if reference.host == DOCKER_IO else reference.host
    url = Url.parse(f"https://{netloc}")
    if is_loopback(url.host) and not any(find_certificate_dirs(netloc, options)):
        return Url.parse(f"http://{netloc}")
    return url


def _parse_mirrors(reference: Reference, mirrors: Sequence[str]) -> Iterator[tuple[str, Url]]:
    """Yield host and URL of the mirrors; as in Docker, only docker.io has mirrors."""
    for text in mirrors if reference.host == DOCKER_IO else ():
        url = _parse_mirror(text)
        yield url.netloc, url


def _parse_mirror(text: str) -> Url:
    hint = "use https://HOST[:PORT]; plain http is allowed for the loopback interface only"
    try:
        url = Url.parse(text if "://" in text else f"https://{text}")
    except RegistryError:
        raise UsageError(f"{redact(text)!r} is not a valid mirror URL", hint=hint) from None
    if url.target != "/" or (url.scheme == "http" and not is_loopback(url.host)):
        raise UsageError(f"{redact(text)!r} cannot be used as a mirror", hint=hint)
    return url
