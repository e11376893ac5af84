"""Where a build's outputs lie: files and folders, an engine's store, and registries by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.report.model import Output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.build.outputs import OutputSpec
    from buildkit_tasks.platforms import Platform

__all__ = ["from_outputs", "make_platform_tag", "parse_repositories", "push_archive", "read_pushed_digests"]


def make_platform_tag(tag: str, platform: Platform) -> str:
    """``hello:0.1`` for linux/arm/v7 becomes ``hello:0.1-linux-arm-v7``."""
    last_part = tag.rpartition("/")[2]
    reference = tag if ":" in last_part else f"{tag}:latest"
    return f"{reference}-{platform.os}-{platform.slug}"


def parse_repositories(references: Sequence[str]) -> tuple[str, ...]:
    """The repositories of these names, each once."""
    if not references:
        return ()
    from buildkit_tasks.oci.reference import Reference

    return tuple(dict.fromkeys(Reference.parse(reference).name for reference in references))


def from_outputs(outputs: Sequence[OutputSpec], tags: Sequence[str], digest: str) -> Iterator[Output]:
    """Where the outputs are; a push is told by its digest, until somebody names it."""
    for output in outputs:
        if output.dest is not None:
            yield Output(type=output.type, dest=str(output.dest))
        elif output.is_pushed:
            repositories = parse_repositories(output.names or tags)
            yield from (Output(type="registry", ref=f"{repository}@{digest}") for repository in repositories)
        else:
            yield from (Output(type=output.type, ref=name) for name in (*tags, *output.names))


def read_pushed_digests(repository: str, digest: str) -> dict[Platform, str]:
    """What lies in the registry under the digest that was pushed."""
    from buildkit_tasks.oci.image import platform_manifests
    from buildkit_tasks.oci.registry import open_registry

    with open_registry(f"{repository}@{digest}") as source:
        return {platform: str(descriptor.digest) for platform, descriptor in platform_manifests(source)}


def push_archive(archive: Path, repositories: Sequence[str]) -> str:
    """Put an OCI archive into registries, by its digest; gives that."""
    from buildkit_tasks.oci.copy.push import copy_image
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.transports import open_image

    with open_image(f"oci-archive:{archive}") as source:
        first_repository, *other_repositories = map(Reference.parse, repositories)
        root = copy_image(source, first_repository)
        for repository in other_repositories:
            copy_image(source, repository, mount_from=first_repository)
    return str(root.digest)
