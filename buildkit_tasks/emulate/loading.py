"""Bring an image into the engine for a run, and take it out again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.engine.sdk import inspect_image, platform_of, stored_manifests
from buildkit_tasks.errors import CheckFailed, EngineError, UsageError
from buildkit_tasks.oci.pack import pack
from buildkit_tasks.oci.source import Source, manifest_of, platform_manifests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from docker import DockerClient

    from buildkit_tasks.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform

    OpenImage = Callable[[str], contextlib.AbstractContextManager[Source]]

__all__ = ["Loaded", "image_in_engine"]

_DAEMON = "docker-daemon:"
_LOAD_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One platform's image in the engine: the id to run and the manifest's digest to prove."""

    image: str
    digest: str


@contextlib.contextmanager
def image_in_engine(
    name: str, platforms: Sequence[Platform], engine: Engine, client: DockerClient, open_image: OpenImage
) -> Iterator[dict[Platform, Loaded]]:
    """Each platform of an image, ready to be run; what was loaded for it is removed afterwards.

    ``name`` is ``docker-daemon:REF`` for an image that is there, else what ``open_image`` reads.
    An image that the engine had already is neither loaded nor removed. ``platforms`` limits what
    is loaded where platforms are loaded one by one; empty means all.
    """
    if name.startswith(_DAEMON):
        yield _stored(name.removeprefix(_DAEMON), client)
        return
    with open_image(name) as source, contextlib.ExitStack() as cleanup:
        if engine.store == "containerd":
            yield _load_whole(source, client, cleanup)
        else:
            yield _load_each(source, platforms, client, cleanup)


def _stored(reference: str, client: DockerClient) -> dict[Platform, Loaded]:
    found = inspect_image(client, reference)
    if found is None:
        raise UsageError(
            f"the engine has no image {reference!r}", hint="inv build-multiarch --load -t NAME:TAG"
        )
    manifests = stored_manifests(found)
    if manifests:
        return {platform: Loaded(image=found["Id"], digest=digest) for platform, digest in manifests.items()}
    stated = {"os": found["Os"], "architecture": found["Architecture"], "variant": found.get("Variant") or ""}
    return {platform_of(stated): Loaded(image=found["Id"], digest="")}


def _load_whole(
    source: Source, client: DockerClient, cleanup: contextlib.ExitStack
) -> dict[Platform, Loaded]:
    root = source.root()
    _load(client, str(root.digest), pack(source, root), cleanup)
    return {
        platform: Loaded(image=str(root.digest), digest=str(entry.digest))
        for platform, entry in platform_manifests(source)
    }


def _load_each(
    source: Source, platforms: Sequence[Platform], client: DockerClient, cleanup: contextlib.ExitStack
) -> dict[Platform, Loaded]:
    """A classic store knows an image by the digest of its configuration."""
    found: dict[Platform, Loaded] = {}
    for platform, entry in platform_manifests(source):
        if platforms and platform not in platforms:
            continue
        image = str(manifest_of(source, entry).config.digest)
        _load(client, image, pack(source, entry, classic=True), cleanup)
        found[platform] = Loaded(image=image, digest=str(entry.digest))
    return found


def _load(client: DockerClient, image: str, archive: Iterator[bytes], cleanup: contextlib.ExitStack) -> None:
    if inspect_image(client, image) is not None:
        return
    api: Any = client.api  # load_image has no types
    messages = list(api.load_image(archive))
    if inspect_image(client, image) is None:
        said = "; ".join(
            str(message.get("error") or message.get("stream", "")).strip() for message in messages
        )
        raise EngineError(f"the engine did not take the image {image}: {said}")
    cleanup.callback(_remove, client, image)


def _remove(client: DockerClient, image: str) -> None:
    from docker.errors import APIError  # noqa: PLC0415

    try:
        client.api.remove_image(image)
    except APIError as error:
        # Somebody tagged it or runs it meanwhile: then it is no longer ours to remove.
        if not error.is_client_error():
            raise CheckFailed(
                f"the image {image} that was loaded for the run could not be removed: {error}"
            ) from error
