"""Where a build's outputs lie: files and folders, an engine's store, and registries by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.report.model import Output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.build.outputs import OutputSpec
    from buildkit_tasks.platforms import Platform

__all__ = ["destinations", "platform_tag", "pushed_digests", "repositories_of", "send_archive"]


def platform_tag(tag: str, platform: Platform) -> str:
    """``hello:0.1`` for linux/arm/v7 becomes ``hello:0.1-linux-arm-v7``."""
    last = tag.rpartition("/")[2]
    name = tag if ":" in last else f"{tag}:latest"
    return f"{name}-{platform.os}-{platform.slug}"


def repositories_of(names: Sequence[str]) -> tuple[str, ...]:
    """The repositories of these names, each once."""
    if not names:
        return ()
    from buildkit_tasks.oci.reference import Reference

    return tuple(dict.fromkeys(Reference.parse(name).name for name in names))


def destinations(outputs: Sequence[OutputSpec], tags: Sequence[str], digest: str) -> Iterator[Output]:
    """Where the outputs are; a push is told by its digest, until somebody names it."""
    for output in outputs:
        if output.dest is not None:
            yield Output(type=output.type, dest=str(output.dest))
        elif output.pushes:
            names = repositories_of(output.names or tags)
            yield from (Output(type="registry", ref=f"{name}@{digest}") for name in names)
        else:
            yield from (Output(type=output.type, ref=name) for name in (*tags, *output.names))


def pushed_digests(repository: str, digest: str) -> dict[Platform, str]:
    """What lies in the registry under the digest that was pushed."""
    from buildkit_tasks.oci.image import platform_manifests
    from buildkit_tasks.oci.registry import open_registry

    with open_registry(f"{repository}@{digest}") as source:
        return {platform: str(entry.digest) for platform, entry in platform_manifests(source)}


def send_archive(archive: Path, repositories: Sequence[str]) -> str:
    """Put an OCI archive into registries, by its digest; gives that."""
    from buildkit_tasks.oci.copy.push import send
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.transports import open_image

    with open_image(f"oci-archive:{archive}") as source:
        first, *others = map(Reference.parse, repositories)
        root = send(source, first)
        for other in others:
            send(source, other, origin=first)
    return str(root.digest)
