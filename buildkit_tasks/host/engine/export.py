"""An image out of a Docker engine as a stream: what ``docker save`` would write to a file.

Engine API, "Export an image" (``GET /images/{name}/get``).
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING, Any, BinaryIO

from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image
from buildkit_tasks.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine

__all__ = ["export_image"]

_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{6,64}", re.ASCII)
_FULL_ID_LENGTH = 64
_EXPORT_SECONDS = 300  # a classic store collects the whole archive before its first byte


def export_image(engine: Engine, reference: str) -> BinaryIO:
    """A fresh stream of the image's save archive; ``reference`` is a name or an id.

    Raises :class:`UsageError` for an image that the engine does not have, or has in a part that it
    cannot export, and for what cannot be one's name; :class:`EngineError` for an engine that stops
    answering.
    """
    # What is no image's id has to be a reference: it becomes a part of a URL.
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
    """The name of one image: without a tag the engine would export all of a repository's tags."""
    if _IMAGE_ID.fullmatch(reference) and len(reference) == _FULL_ID_LENGTH:
        reference = f"sha256:{reference}"  # alone, a whole id is no name to the engine
    last_component = reference.rpartition("/")[2]
    for name in (
        [reference] if ":" in last_component or "@" in last_component else [f"{reference}:latest", reference]
    ):
        image = inspect_image(client, name)
        if image is not None:
            return name, image
    raise UsageError(f"the engine has no image {reference!r}", hint=f"docker pull {reference}")


def _request_export(client: DockerClient, name: str, image: dict[str, Any], engine: Engine) -> Any:
    from docker.errors import NotFound

    api: Any = client.api  # its `get_image` gives pieces that cannot be closed: its helpers, one floor down
    url = api._url("/images/{0}/get", name)  # noqa: SLF001 - see above
    response = api._get(url, stream=True, timeout=_EXPORT_SECONDS)  # noqa: SLF001 - see above
    try:
        api._raise_for_status(response)  # noqa: SLF001 - see above
    except NotFound as error:
        # A containerd store exports an image of which platforms are missing, but not its own.
        response.close()
        available = ", ".join(str(platform) for platform in available_manifests(image)) or "nothing"
        raise UsageError(
            f"of {name} the engine has {available}, which it cannot export without {engine.platform}: "
            f"{error}",
            hint=f"docker pull --platform {engine.platform} {name}",
        ) from error
    return response


class _ExportBody(io.RawIOBase):
    """The body of an answer; closing it ends the connection."""

    def __init__(self, response: Any, reference: str, resources: contextlib.ExitStack) -> None:
        super().__init__()
        self._response = response
        self._reference = reference
        self._resources = resources

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with _translate_engine_errors(self._reference):
            data: bytes = self._response.raw.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

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
        raise EngineError(f"the engine did not give the image {reference}: {error}") from error
