"""Bring an image into the engine for a run, and take it out again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import CheckFailed, EngineError, UsageError
from buildkit_tasks.host.engine.sdk import inspect_image, platform_of, stored_manifests
from buildkit_tasks.oci.copy.docker_load import pack
from buildkit_tasks.oci.image import Source, manifest_of, platform_manifests
from buildkit_tasks.run.docker.timeouts import answering, ask_to_remove, how_to_list, is_silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform

    OpenImage = Callable[[str], contextlib.AbstractContextManager[Source]]

__all__ = ["Loaded", "image_in_engine"]

_DAEMON = "docker-daemon:"


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
    with _given_back(engine, client) as loaded:
        if name.startswith(_DAEMON):
            yield _stored(name.removeprefix(_DAEMON), client)
            return
        with open_image(name) as source:
            load = _Loader(client=client, loaded=loaded)
            whole = engine.store == "containerd"
            yield load.whole(source) if whole else load.each(source, platforms)


@contextlib.contextmanager
def _given_back(engine: Engine, client: DockerClient) -> Iterator[list[str]]:
    """A list of images, which are removed from the engine afterwards if it answers."""
    loaded: list[str] = []
    silent = False
    try:
        yield loaded
    except EngineError as error:
        silent = is_silence(error.__cause__)
        if not silent:
            raise
        for image in loaded:
            ask_to_remove(client, "images", image)
        left = f"; so may {', '.join(loaded)}, loaded for the run" if loaded else ""
        raise EngineError(
            error.message + left, platform=error.platform, hint=how_to_list(engine)
        ) from error.__cause__
    finally:
        for image in () if silent else loaded:
            with answering(client, f"the image {image}", engine=engine):
                _remove(client, image)


def _stored(reference: str, client: DockerClient) -> dict[Platform, Loaded]:
    found = _inspect(client, reference)
    if found is None:
        raise UsageError(
            f"the engine has no image {reference!r}", hint="inv build-multiarch --load -t NAME:TAG"
        )
    manifests = stored_manifests(found)
    if manifests:
        return {platform: Loaded(image=found["Id"], digest=digest) for platform, digest in manifests.items()}
    stated = {"os": found["Os"], "architecture": found["Architecture"], "variant": found.get("Variant") or ""}
    return {platform_of(stated): Loaded(image=found["Id"], digest="")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loader:
    """Loads images into an engine, and notes in ``loaded`` those that it did not have."""

    client: DockerClient
    loaded: list[str]

    def whole(self, source: Source) -> dict[Platform, Loaded]:
        """All platforms at once: a containerd store takes an index."""
        root = source.root()
        self._load(str(root.digest), pack(source, root))
        return {
            platform: Loaded(image=str(root.digest), digest=str(entry.digest))
            for platform, entry in platform_manifests(source)
        }

    def each(self, source: Source, platforms: Sequence[Platform]) -> dict[Platform, Loaded]:
        """One after the other: a classic store knows an image by the digest of its configuration."""
        found: dict[Platform, Loaded] = {}
        for platform, entry in platform_manifests(source):
            if platforms and platform not in platforms:
                continue
            image = str(manifest_of(source, entry).config.digest)
            self._load(image, pack(source, entry, classic=True))
            found[platform] = Loaded(image=image, digest=str(entry.digest))
        return found

    def _load(self, image: str, archive: Iterator[bytes]) -> None:
        if _inspect(self.client, image) is not None:
            return
        api: Any = self.client.api  # load_image has no types
        # Noted before: what an engine took and did not say is removed as well.
        self.loaded.append(image)
        with _refusals(f"the engine did not take the image {image}"), answering(self.client):
            messages = list(api.load_image(archive))
        if _inspect(self.client, image) is None:
            said = "; ".join(
                str(message.get("error") or message.get("stream", "")).strip() for message in messages
            )
            raise EngineError(f"the engine did not take the image {image}: {said}")


def _inspect(client: DockerClient, name: str) -> dict[str, Any] | None:
    with _refusals(f"the engine does not tell of the image {name!r}"), answering(client):
        return inspect_image(client, name)


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """An engine's answer that says no, in its own words."""
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        kind = UsageError if error.is_client_error() else EngineError
        raise kind(f"{what}: {error.explanation}") from error


def _remove(client: DockerClient, image: str) -> None:
    from docker.errors import APIError

    try:
        client.api.remove_image(image)
    except APIError as error:
        # Somebody tagged it or runs it meanwhile: then it is no longer ours to remove.
        if not error.is_client_error():
            raise CheckFailed(
                f"the image {image} that was loaded for the run could not be removed: {error}"
            ) from error
