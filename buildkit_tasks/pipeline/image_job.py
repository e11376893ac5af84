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

__all__ = ["Choice", "Wanted", "check_apart", "with_archive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which images, and the options that are no settings, by the names of a build request.

    ``names`` are images of the settings, or targets of the bake file if there is one; none means all,
    or what the file builds by default.
    """

    names: tuple[str, ...] = ()
    bake: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One image: what to build under which settings, and on which others.

    ``links`` are contexts that are other images: a context's name and the image's. One that is not
    ``told`` is there for others to be built on, and in no report.
    """

    name: str
    settings: Settings
    request: BuildRequest
    links: tuple[tuple[str, str], ...] = ()
    told: bool = True


def with_archive(outputs: Sequence[OutputSpec], dest: str) -> tuple[OutputSpec, ...]:
    """The outputs with an OCI archive among them, which the next steps read."""
    if any(output.type == "oci" and output.is_file for output in outputs):
        return tuple(outputs)
    return (OutputSpec(type="oci", attributes=(("dest", dest),)), *outputs)


def check_apart(images: Sequence[Wanted]) -> None:
    """Refuse two images of one tag or one file: the later would replace the earlier."""
    taken: dict[str, str] = {}
    for image in images:
        for place in _places(image.request):
            other = taken.setdefault(place, image.name)
            if other != image.name:
                raise UsageError(
                    f"{other} and {image.name} would both be {place}",
                    hint="give each its own, or build one of them",
                )


def _places(request: BuildRequest) -> Iterator[str]:
    yield from (f"tagged {tag}" for tag in request.tags)
    for output in request.outputs:
        yield from (f"tagged {name}" for name in output.names)
        if output.dest is not None:
            yield f"written to {output.dest.absolute()}"
    if request.metadata_file:
        yield f"described in {request.metadata_file}"
