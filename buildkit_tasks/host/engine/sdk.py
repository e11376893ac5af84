"""Access an engine through the Docker SDK, which is imported only when needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.daemon import API_SECONDS
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine

__all__ = [
    "available_manifests",
    "connect_client",
    "get_from_api",
    "inspect_image",
    "parse_api_platform",
]


def connect_client(engine: Engine) -> DockerClient:
    """Return a client of the engine. Raise :class:`EngineError` if it does not answer.

    ``docker.from_env`` follows DOCKER_HOST and the CLI's context since docker 7.2.
    """
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env(environment={**os.environ, **engine.env}, timeout=API_SECONDS)
    except DockerException as error:
        raise EngineError(f"the Docker daemon at {engine.endpoint} does not answer: {error}") from error


def get_from_api(client: DockerClient, path: str, name: str, **options: Any) -> Any:
    """Send a GET request and return the response. Raise the SDK's error if it failed.

    The SDK's public methods lack options of the API that are needed here, so its internal ones are used.
    """
    api: Any = client.api
    response = api._get(api._url(path, name), **options)  # noqa: SLF001 - see above
    try:
        api._raise_for_status(response)  # noqa: SLF001 - see above
    except BaseException:
        response.close()
        raise
    return response


def inspect_image(client: DockerClient, name: str) -> dict[str, Any] | None:
    """Return the engine's description of an image with its manifests (API 1.48), or None."""
    from docker.errors import ImageNotFound

    try:
        image: dict[str, Any] = get_from_api(
            client, "/images/{0}/json", name, params={"manifests": "1"}
        ).json()
    except ImageNotFound:
        return None
    return image


def available_manifests(image: dict[str, Any]) -> dict[Platform, str]:
    """Return the platforms that a containerd store has completely, with their manifests' digests.

    Raises :class:`EngineError` if the engine does not describe them as the Engine API says.
    """
    try:
        return {
            parse_api_platform(manifest["ImageData"]["Platform"]): manifest["ID"]
            for manifest in image.get("Manifests") or ()
            if manifest.get("Kind") == "image" and manifest.get("Available")
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise EngineError(f"the engine describes an image without its platforms: {error!r}") from error


def parse_api_platform(platform: dict[str, str]) -> Platform:
    """Return a platform of the Engine API, normalised."""
    return Platform.normalize(platform["os"], platform["architecture"], platform.get("variant", ""))
