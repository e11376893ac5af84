"""Which images are wanted when there are several, each with its request; no two may go to one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.config.settings import Settings

__all__ = ["ImageJob", "ImageSelection", "add_archive_output", "check_distinct_destinations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSelection:
    """Which images, and the options that are no settings, by the names of a build request.

    ``names`` are images of the settings, or targets of the bake file if there is one; none means all,
    or what the file builds by default.
    """

    names: tuple[str, ...] = ()
    bake_file: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """One image: what to build under which settings, and on which others.

    ``links`` are contexts that are other images: a context's name and the image's. One that is not
    ``told`` is there for others to be built on, and in no report.
    """

    name: str
    settings: Settings
    request: BuildRequest
    linked_contexts: tuple[tuple[str, str], ...] = ()
    reported: bool = True


def add_archive_output(outputs: Sequence[OutputSpec], dest: str) -> tuple[OutputSpec, ...]:
    """The outputs with an OCI archive among them, which the next steps read."""
    if any(output.type == "oci" and output.is_file for output in outputs):
        return tuple(outputs)
    return (OutputSpec(type="oci", attributes=(("dest", dest),)), *outputs)


def check_distinct_destinations(image_jobs: Sequence[ImageJob]) -> None:
    """Refuse two images of one tag or one file: the later would replace the earlier."""
    owners: dict[str, str] = {}
    for job in image_jobs:
        for destination in _describe_destinations(job.request):
            owner = owners.setdefault(destination, job.name)
            if owner != job.name:
                raise UsageError(
                    f"{owner} and {job.name} would both be {destination}",
                    hint="give each its own, or build one of them",
                )


def _describe_destinations(request: BuildRequest) -> Iterator[str]:
    yield from (f"tagged {tag}" for tag in request.tags)
    for output in request.outputs:
        yield from (f"tagged {name}" for name in output.names)
        if output.dest is not None:
            yield f"written to {output.dest.absolute()}"
    if request.metadata_file:
        yield f"described in {request.metadata_file}"
