"""Load an image into the engine for a run, and remove it afterwards."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import CheckFailed, EngineError, UsageError
from buildkit_tasks.host.engine.sdk import available_manifests, inspect_image, parse_api_platform
from buildkit_tasks.oci.copy.docker_load import pack_image
from buildkit_tasks.run.docker.timeouts import (
    is_connection_error,
    request_removal,
    suggest_list_command,
    translate_connection_errors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.backend import ImageOpener

__all__ = ["LoadedImage", "load_into_engine"]

_DOCKER_DAEMON_PREFIX = "docker-daemon:"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """One platform's image in the engine: the id to run, and the manifest digest that must be run."""

    image_id: str
    digest: str


@contextlib.contextmanager
def load_into_engine(
    name: str, platforms: Sequence[Platform], engine: Engine, client: DockerClient, open_image: ImageOpener
) -> Iterator[dict[Platform, LoadedImage]]:
    """Yield the platforms of an image, loaded into the engine; remove what was loaded afterwards.

    ``name`` is ``docker-daemon:REF`` for an image of the engine, else a name that ``open_image`` reads. An
    image that the engine has already is neither loaded nor removed. A store that takes one platform at a
    time loads only ``platforms``; empty means all.
    """
    with _remove_loaded_images(engine, client) as image_ids:
        if name.startswith(_DOCKER_DAEMON_PREFIX):
            yield _find_stored_platforms(name.removeprefix(_DOCKER_DAEMON_PREFIX), client)
            return
        with open_image(name) as image:
            loader = _ImageLoader(client=client, image_ids=image_ids)
            is_containerd = engine.store == "containerd"
            yield loader.load_index(image) if is_containerd else loader.load_platforms(image, platforms)


@contextlib.contextmanager
def _remove_loaded_images(engine: Engine, client: DockerClient) -> Iterator[list[str]]:
    """Yield a list of image ids; remove these images afterwards, if the engine still answers."""
    image_ids: list[str] = []
    is_unresponsive = False
    try:
        yield image_ids
    except EngineError as error:
        is_unresponsive = is_connection_error(error.__cause__)
        if not is_unresponsive:
            raise
        for image_id in image_ids:
            request_removal(client, "images", image_id)
        leftovers = f"; so may {', '.join(image_ids)}, loaded for the run" if image_ids else ""
        raise EngineError(
            error.message + leftovers, platform=error.platform, hint=suggest_list_command(engine)
        ) from error.__cause__
    finally:
        for image_id in () if is_unresponsive else image_ids:
            with translate_connection_errors(client, f"the image {image_id}", engine=engine):
                _remove_image(client, image_id)


def _find_stored_platforms(reference: str, client: DockerClient) -> dict[Platform, LoadedImage]:
    inspected = _inspect_image(client, reference)
    if inspected is None:
        raise UsageError(
            f"the engine has no image {reference!r}",
            hint=f"inv build-multiarch --load -t {shlex.quote(reference.partition('@')[0])}",
        )
    manifests = available_manifests(inspected)
    if manifests:
        return {
            platform: LoadedImage(image_id=inspected["Id"], digest=digest)
            for platform, digest in manifests.items()
        }
    platform_fields = {
        "os": inspected["Os"],
        "architecture": inspected["Architecture"],
        "variant": inspected.get("Variant") or "",
    }
    return {parse_api_platform(platform_fields): LoadedImage(image_id=inspected["Id"], digest="")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageLoader:
    """Loads images into an engine; adds to ``image_ids`` those that the engine did not have."""

    client: DockerClient
    image_ids: list[str]

    def load_index(self, image: Image) -> dict[Platform, LoadedImage]:
        """Load all platforms at once: a containerd store accepts an index."""
        image_id = str(image.root.digest)
        self._load_archive(image_id, pack_image(image, image.root))
        return {
            platform: LoadedImage(image_id=image_id, digest=str(entry.digest))
            for platform, entry in image.platform_manifests
        }

    def load_platforms(self, image: Image, platforms: Sequence[Platform]) -> dict[Platform, LoadedImage]:
        """Load each platform: a classic store identifies an image by the digest of its configuration."""
        images: dict[Platform, LoadedImage] = {}
        for platform, entry in image.platform_manifests:
            if platforms and platform not in platforms:
                continue
            image_id = str(image.manifest(entry).config.digest)
            self._load_archive(image_id, pack_image(image, entry, classic=True))
            images[platform] = LoadedImage(image_id=image_id, digest=str(entry.digest))
        return images

    def _load_archive(self, image_id: str, archive: Iterator[bytes]) -> None:
        if _inspect_image(self.client, image_id) is not None:
            return
        api: Any = self.client.api  # load_image has no types
        # Recorded first: an engine may load the image and then fail to answer.
        self.image_ids.append(image_id)
        with (
            _translate_api_errors(f"the engine did not load the image {image_id}"),
            translate_connection_errors(self.client),
        ):
            messages = list(api.load_image(archive))
        if _inspect_image(self.client, image_id) is None:
            details = "; ".join(
                str(message.get("error") or message.get("stream", "")).strip() for message in messages
            )
            raise EngineError(f"the engine did not load the image {image_id}: {details}")


def _inspect_image(client: DockerClient, name: str) -> dict[str, Any] | None:
    with (
        _translate_api_errors(f"the engine cannot inspect the image {name!r}"),
        translate_connection_errors(client),
    ):
        return inspect_image(client, name)


@contextlib.contextmanager
def _translate_api_errors(problem: str) -> Iterator[None]:
    """Translate an error response of the engine to UsageError (4xx) or EngineError."""
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        error_type = UsageError if error.is_client_error() else EngineError
        raise error_type(f"{problem}: {error.explanation}") from error


def _remove_image(client: DockerClient, image_id: str) -> None:
    from docker.errors import APIError

    try:
        client.api.remove_image(image_id)
    except APIError as error:
        # 4xx: it was tagged or is run by somebody else meanwhile, so it must stay.
        if not error.is_client_error():
            raise CheckFailed(
                f"the image {image_id} that was loaded for the run could not be removed: {error}"
            ) from error
