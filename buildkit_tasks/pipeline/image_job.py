"""Which images to build when there are several, and the request of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.config.settings import Settings

__all__ = ["ImageJob", "ImageSelection", "check_distinct_destinations", "hint_for_one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSelection:
    """Which images to build, and the options of all of them that are not settings.

    ``names`` are images of the settings, or targets of ``bake_files`` if there are any; empty means all
    images of the settings, or the files' default targets. ``bake_overrides`` change keys of targets, as
    ``docker buildx bake --set``. ``options`` are fields of :class:`BuildRequest`.
    """

    names: tuple[str, ...] = ()
    bake_files: tuple[str, ...] = ()
    bake_overrides: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bake_file(self) -> str:
        """Return the bake files as messages name them, or "" if there is none."""
        return ", ".join(self.bake_files)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """One image: its name, what to build, and its settings.

    ``linked_contexts`` are build contexts that are other images: (context's name, image's name) each. A job
    that is not ``reported`` is built only as the context of others.
    """

    name: str
    settings: Settings
    request: BuildRequest
    linked_contexts: tuple[tuple[str, str], ...] = ()
    reported: bool = True


def hint_for_one(name: str, hint: str, *, is_target: bool) -> str | None:
    """Return a hint for one of several images: the option ``-t TAG`` would give all of them the same tag."""
    option, _, tag = hint.partition(" ")
    if option != "-t":
        return hint or None
    return f"--set {name}.tags={tag}" if is_target else f'tags = ["{tag}"] in the settings\' table of {name}'


def check_distinct_destinations(image_jobs: Sequence[ImageJob]) -> None:
    """Raise :class:`UsageError` if two images have the same tag or file: one would overwrite the other."""
    owners: dict[str, str] = {}
    for job in image_jobs:
        for destination in _describe_destinations(job.request):
            owner = owners.setdefault(destination, job.name)
            if owner != job.name:
                raise UsageError(
                    f"{owner} and {job.name} would both be {destination}",
                    hint="give each image its own, or build only one of them",
                )


def _describe_destinations(request: BuildRequest) -> Iterator[str]:
    yield from (f"tagged {tag}" for tag in request.tags)
    for output in request.outputs:
        yield from (f"tagged {name}" for name in output.names)
        if output.dest is not None:
            yield f"written to {output.dest.absolute()}"
    for path in filter(None, (request.metadata_file, request.iidfile)):
        yield f"described in {path}"
