"""Several images in one run: those of the settings, or the targets of a bake file.

Each goes its own way from its request to its runs, and one that fails does not keep the others from
theirs. What is built on another image gets it as an OCI layout: the very bytes that were built.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.cache import of_image
from buildkit_tasks.build.request import BuildRequest, check_request
from buildkit_tasks.config.images import check_image_names
from buildkit_tasks.errors import BuildFailed, BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.pipeline.bake import bake_images
from buildkit_tasks.pipeline.image_job import Choice, Wanted, check_apart, with_archive
from buildkit_tasks.pipeline.images import image_of
from buildkit_tasks.report.model import BuildResult, ImageReport, ImagesReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.pipeline.pipeline import Line

__all__ = ["Choice", "Several", "build_one", "several"]


@contextmanager
def several(line: Line, choice: Choice) -> Iterator[Several]:
    """The images that are asked for, checked before any of them is built.

    Raises :class:`UsageError` for a name that is not there, a value that cannot be, and for two images
    that would go to one place.
    """
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        scratch = Path(folder)
        images = bake_images(line, choice, scratch) if choice.bake else _settled_images(line, choice)
        for image in images:
            _check(image)
        check_apart([image for image in images if image.told])
        yield Several(line=line, images=images, scratch=scratch)


def build_one(line: Line, name: str) -> BuildResult:
    """Build the image of the settings that is called so, and do nothing else with it."""
    with several(line, Choice(names=(name,))) as found:
        (image,) = found.images
        return line.under(image.settings).build(image.request)


def _settled_images(line: Line, choice: Choice) -> tuple[Wanted, ...]:
    """The images of the settings that are named, or all."""
    tables = {table.name: table for table in line.settings.images}
    check_image_names(line.settings, choice.names)
    images = []
    for name, table in tables.items():
        if choice.names and name not in choice.names:
            continue
        settings = line.settings.of(table)
        outputs = with_archive(choice.options.get("outputs", ()), f"dist/{name}.tar")
        # Not through `under`: no engine is started before all are known to be right.
        imported = choice.options.get("cache_from", ())
        caches = {
            "cache_to": of_image(choice.options.get("cache_to", ()), "--cache-to", name),
            # The place itself as well: there is what buildx alone has put, or an image's inline cache.
            "cache_from": (*imported, *of_image(imported, "--cache-from", name)),
        }
        request = replace(line, settings=settings).request(**{**choice.options, "outputs": outputs, **caches})
        images.append(Wanted(name=name, settings=settings, request=request))
    return tuple(images)


def _check(image: Wanted) -> None:
    try:
        check_request(image.request)
    except UsageError as error:
        raise UsageError(f"{image.name}: {error.message}", hint=error.hint) from error


def _released(report: ImageReport, built: BuildResult) -> ImageReport:
    """The report with what a push has proved and named, which stands in no second place."""
    if built.pushed is None:
        return report
    pushed = built.pushed
    build = replace(built, pushed=None)
    unproved = pushed.verify is not None and pushed.run is None
    return replace(
        report,
        build=build,
        verify=pushed.verify,
        run=pushed.run,
        tags=pushed.tags,
        error="what was verified did not hold: it was not run, and no tag names it" if unproved else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """Images in an order in which each comes after those that it is built on."""

    line: Line
    images: tuple[Wanted, ...]
    scratch: Path
    _made: dict[str, BuildResult] = field(default_factory=dict, init=False)

    def report(self, *, setup: bool = False) -> tuple[ImagesReport, tuple[BuildkitTasksError, ...]]:
        """Build, verify and run each, after one setup if that is asked for; and what went wrong.

        An interruption ends it: what comes after is not begun.
        """
        report = ImagesReport()
        if setup:
            try:
                report = replace(report, setup=self._under_all().setup())
            except BuildkitTasksError as error:
                return replace(report, error=str(error)), (error,)
        errors: list[BuildkitTasksError] = []
        for image in self.images:
            row, failure = self._one(image)
            if image.told:
                report = replace(report, images=(*report.images, row))
            if failure is not None:
                errors.append(failure)
            if isinstance(failure, Interrupted):
                break
        return report, tuple(errors)

    def _under_all(self) -> Line:
        """The line for every platform that any of the images is for."""
        names = (str(platform) for image in self.images for platform in image.request.platforms)
        return self.line.under(replace(self.line.settings, platforms=tuple(dict.fromkeys(names))))

    def _one(self, image: Wanted) -> tuple[ImageReport, BuildkitTasksError | None]:
        """One image as far as it gets. Of a dry run there is nothing to verify and to run."""
        report, platforms = ImageReport(name=image.name), image.request.platforms
        line = self.line.under(image.settings)
        line.tell(f"{image.name}: {', '.join(map(str, platforms))}")
        try:
            request = self._linked(image)
            built = self._made[image.name] = line.build(request)
            report = replace(report, build=built)
            if not image.told:
                return report, None
            built = line.release(request, built)
            if line.run.dry_run:
                return report, None
            report = _released(report, built)
            name = image_of(built)
            if report.verify is None:  # else it was proved where it was pushed to
                report = replace(report, verify=line.images.verify(name, platforms))
                report = replace(report, run=line.emulate(name, platforms))
        except BuildkitTasksError as error:
            line.tell(f"{image.name}: {error}")
            return replace(report, error=str(error)), error
        return report, None

    def _linked(self, image: Wanted) -> BuildRequest:
        """The image's request, with the images that it is built on as its contexts."""
        contexts = (f"{context}={self._layout(name)}" for context, name in image.links)
        return replace(image.request, build_contexts=(*image.request.build_contexts, *contexts))

    def _layout(self, name: str) -> str:
        """An image that was built, as a named context's value."""
        built = self._made.get(name)
        if built is None:
            raise BuildFailed(f"{name}, on which it is built, could not be built")
        place = self.scratch / "layouts" / name
        if self.line.run.dry_run:
            return f"oci-layout://{place}@sha256:DIGEST"
        if not place.exists():
            from buildkit_tasks.oci.transports.layout import write_layout
            from buildkit_tasks.oci.transports.oci_archive import Archive

            archives = (output.dest for output in built.outputs if output.type == "oci" and output.dest)
            write_layout(Archive(Path(next(archives))), place)
        return f"oci-layout://{place}@{built.digest}"
