"""Export an image from a Docker engine as a stream, like ``docker save``.

Engine API, "Export an image" (``GET /images/{name}/get``).
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING, Any, BinaryIO

from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, get_from_api, inspect_image
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.streams import RawReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine

__all__ = ["export_image"]

_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{6,64}", re.ASCII)
_FULL_ID_LENGTH = 64
_EXPORT_SECONDS = 300  # the classic image store writes the whole archive before it sends the first byte


def export_image(engine: Engine, reference: str) -> BinaryIO:
    """Open the archive of an image; ``reference`` is a name or an id.

    Raise :class:`UsageError` for an invalid name, an image that the engine does not have, or one of
    which it cannot export the platforms that it has; :class:`EngineError` if the engine stops answering.
    """
    # Validate it, because it becomes a part of a URL.
    if not _IMAGE_ID.fullmatch(reference):
        Reference.parse(reference)
    with contextlib.ExitStack() as stack, _translate_engine_errors(reference):
        client = connect_client(engine)
        stack.callback(client.close)
        name, image = _find_image(client, reference)
        response = _request_export(client, name, image, engine)
        stack.callback(response.close)
        return io.BufferedReader(_ExportBody(response, reference, stack.pop_all()), 1 << 20)


def _find_image(client: DockerClient, reference: str) -> tuple[str, dict[str, Any]]:
    """Return an image's full name and description; without a tag, all tags would be exported."""
    if _IMAGE_ID.fullmatch(reference) and len(reference) == _FULL_ID_LENGTH:
        reference = f"sha256:{reference}"  # the engine does not accept a full id without its algorithm
    last_component = reference.rpartition("/")[2]
    is_complete = ":" in last_component or "@" in last_component
    for name in [reference] if is_complete else [f"{reference}:latest", reference]:
        image = inspect_image(client, name)
        if image is not None:
            return name, image
    raise UsageError(f"the engine has no image {reference!r}", hint=f"docker pull {reference}")


def _request_export(client: DockerClient, name: str, image: dict[str, Any], engine: Engine) -> Any:
    from docker.errors import NotFound

    try:
        # Not the SDK's `get_image`, whose iterator does not close the connection.
        return get_from_api(client, "/images/{0}/get", name, stream=True, timeout=_EXPORT_SECONDS)
    except NotFound as error:
        # The containerd store exports images without some platforms, but not without the engine's own.
        available = ", ".join(str(platform) for platform in available_manifests(image)) or "nothing"
        raise UsageError(
            f"the engine has {available} of {name}, which it cannot export without {engine.platform}: "
            f"{error}",
            hint=f"docker pull --platform {engine.platform} {name}",
        ) from error


class _ExportBody(RawReader):
    """The body of a response; closing it closes the connection."""

    def __init__(self, response: Any, reference: str, resources: contextlib.ExitStack) -> None:
        super().__init__()
        self._response = response
        self._reference = reference
        self._resources = resources

    def read_some(self, size: int) -> bytes:
        with _translate_engine_errors(self._reference):
            data: bytes = self._response.raw.read(size)
        return data

    def close(self) -> None:
        self._resources.close()
        super().close()


@contextlib.contextmanager
def _translate_engine_errors(reference: str) -> Iterator[None]:
    from docker.errors import DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (DockerException, RequestException, HTTPError) as error:
        raise EngineError(f"the engine could not export the image {reference}: {error}") from error
