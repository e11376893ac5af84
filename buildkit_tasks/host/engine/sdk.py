"""The Docker SDK for one engine, imported only when a container or an image is looked at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import EngineError
from buildkit_tasks.platforms import Platform

if TYPE_CHECKING:
    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine

__all__ = ["API_SECONDS", "available_manifests", "connect_client", "inspect_image"]

API_SECONDS = 30  # row 55: an engine that says nothing for this long has stopped answering


def connect_client(engine: Engine) -> DockerClient:
    """A client of the engine. Raises :class:`EngineError` if it does not answer.

    ``docker.from_env`` follows DOCKER_HOST and the CLI's context since docker 7.2.
    """
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env(environment={**os.environ, **engine.env}, timeout=API_SECONDS)
    except DockerException as error:
        raise EngineError(f"the Docker daemon at {engine.endpoint} does not answer: {error}") from error


def inspect_image(client: DockerClient, name: str) -> dict[str, Any] | None:
    """The engine's description of an image with its manifests (API 1.48), or None."""
    from docker.errors import ImageNotFound

    api: Any = client.api  # the SDK has no `manifests` argument yet: its own helpers, one floor down
    try:
        url = api._url("/images/{0}/json", name)  # noqa: SLF001 - see above
        image: dict[str, Any] = api._result(api._get(url, params={"manifests": "1"}), json=True)  # noqa: SLF001 - see above
    except ImageNotFound:
        return None
    return image


def available_manifests(image: dict[str, Any]) -> dict[Platform, str]:
    """Each platform of an image in a containerd store that is there whole, and its manifest's digest."""
    manifests = (
        row for row in image.get("Manifests") or () if row.get("Kind") == "image" and row.get("Available")
    )
    pairs = ((row["ImageData"]["Platform"], row["ID"]) for row in manifests)
    return {parse_api_platform(platform): digest for platform, digest in pairs}


def parse_api_platform(platform: dict[str, str]) -> Platform:
    """The platform that the engine states, its spelling normalised."""
    return Platform.normalize(platform["os"], platform["architecture"], platform.get("variant", ""))
