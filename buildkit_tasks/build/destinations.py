"""Where a build's outputs are afterwards, and pushes of what it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.build.outputs import list_names
from buildkit_tasks.report.model import Output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.build.outputs import OutputSpec
    from buildkit_tasks.platforms import Platform

__all__ = [
    "list_destinations",
    "make_platform_tag",
    "parse_repositories",
    "push_archive",
    "read_pushed_digests",
]


def make_platform_tag(tag: str, platform: Platform) -> str:
    """Return the tag of one platform: ``hello:0.1`` becomes ``hello:0.1-linux-arm-v7``."""
    last_component = tag.rpartition("/")[2]
    reference = tag if ":" in last_component else f"{tag}:latest"
    return f"{reference}-{platform.os}-{platform.slug}"


def parse_repositories(references: Sequence[str]) -> tuple[str, ...]:
    """Return the repositories of image references, without duplicates."""
    if not references:
        return ()
    from buildkit_tasks.oci.reference import Reference

    return tuple(dict.fromkeys(Reference.parse(reference).name for reference in references))


def list_destinations(outputs: Sequence[OutputSpec], tags: Sequence[str], digest: str) -> Iterator[Output]:
    """Yield where each output is: a path, ``REPOSITORY@DIGEST`` of a push, or the names of a stored image.

    A stored image without a name has its digest.
    """
    for output in outputs:
        if output.dest is not None:
            yield Output(type=output.type, dest=str(output.dest), unpacked=output.is_unpacked)
        elif output.is_pushed:
            repositories = parse_repositories(list_names(output, tags))
            yield from (Output(type="registry", ref=f"{repository}@{digest}") for repository in repositories)
        else:
            names = list_names(output, tags) or ((digest,) if digest else ())
            yield from (Output(type=output.type, ref=name) for name in names)


def read_pushed_digests(repository: str, digest: str) -> dict[Platform, str]:
    """Return the digest of each platform's manifest of an image in a registry."""
    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.registry import open_registry

    with open_registry(f"{repository}@{digest}") as source:
        return {platform: str(entry.digest) for platform, entry in Image(source).platform_manifests}


def push_archive(archive: Path, repositories: Sequence[str]) -> str:
    """Push an OCI archive to each repository, by digest; return the digest."""
    from buildkit_tasks.oci.copy.push import copy_image
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.transports import open_image

    with open_image(f"oci-archive:{archive}") as source:
        first_repository, *other_repositories = map(Reference.parse, repositories)
        root = copy_image(source, first_repository)
        for repository in other_repositories:
            copy_image(source, repository, mount_from=first_repository)
    return str(root.digest)
