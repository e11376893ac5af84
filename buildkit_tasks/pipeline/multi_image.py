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

from buildkit_tasks.build.cache import image_caches
from buildkit_tasks.build.request import BuildRequest, check_request
from buildkit_tasks.config.images import check_image_names
from buildkit_tasks.errors import BuildFailed, BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.pipeline.bake import read_bake_jobs
from buildkit_tasks.pipeline.image_job import (
    ImageJob,
    ImageSelection,
    add_archive_output,
    check_distinct_destinations,
)
from buildkit_tasks.pipeline.images import best_image_name
from buildkit_tasks.report.model import BuildResult, ImageReport, ImagesReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.pipeline.pipeline import Pipeline

__all__ = ["ImageSelection", "MultiImageBuild", "build_single_image", "open_images"]


@contextmanager
def open_images(pipeline: Pipeline, selection: ImageSelection) -> Iterator[MultiImageBuild]:
    """The images that are asked for, checked before any of them is built.

    Raises :class:`UsageError` for a name that is not there, a value that cannot be, and for two images
    that would go to one place.
    """
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        scratch = Path(folder)
        image_jobs = (
            read_bake_jobs(pipeline, selection, scratch)
            if selection.bake_file
            else _image_jobs_from_settings(pipeline, selection)
        )
        for job in image_jobs:
            _check_job_request(job)
        check_distinct_destinations([job for job in image_jobs if job.reported])
        yield MultiImageBuild(pipeline=pipeline, image_jobs=image_jobs, scratch=scratch)


def build_single_image(pipeline: Pipeline, name: str) -> BuildResult:
    """Build the image of the settings that is called so, and do nothing else with it."""
    with open_images(pipeline, ImageSelection(names=(name,))) as build:
        (job,) = build.image_jobs
        return pipeline.with_settings(job.settings).build(job.request)


def _image_jobs_from_settings(pipeline: Pipeline, selection: ImageSelection) -> tuple[ImageJob, ...]:
    """The images of the settings that are named, or all."""
    tables = {table.name: table for table in pipeline.settings.images}
    check_image_names(pipeline.settings, selection.names)
    image_jobs = []
    for name, table in tables.items():
        if selection.names and name not in selection.names:
            continue
        settings = pipeline.settings.for_image(table)
        outputs = add_archive_output(selection.options.get("outputs", ()), f"dist/{name}.tar")
        # Not through `under`: no engine is started before all are known to be right.
        cache_from = selection.options.get("cache_from", ())
        caches = {
            "cache_to": image_caches(selection.options.get("cache_to", ()), "--cache-to", name),
            # The place itself as well: there is what buildx alone has put, or an image's inline cache.
            "cache_from": (*cache_from, *image_caches(cache_from, "--cache-from", name)),
        }
        request = replace(pipeline, settings=settings).create_request(
            **{**selection.options, "outputs": outputs, **caches}
        )
        image_jobs.append(ImageJob(name=name, settings=settings, request=request))
    return tuple(image_jobs)


def _check_job_request(job: ImageJob) -> None:
    try:
        check_request(job.request)
    except UsageError as error:
        raise UsageError(f"{job.name}: {error.message}", hint=error.hint) from error


def _add_push_result(report: ImageReport, build_result: BuildResult) -> ImageReport:
    """The report with what a push has proved and named, which stands in no second place."""
    if build_result.pushed is None:
        return report
    pushed = build_result.pushed
    build = replace(build_result, pushed=None)
    verify_failed = pushed.verify is not None and pushed.run is None
    return replace(
        report,
        build=build,
        verify=pushed.verify,
        run=pushed.run,
        tags=pushed.tags,
        error="what was verified did not hold: it was not run, and no tag names it" if verify_failed else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiImageBuild:
    """Images in an order in which each comes after those that it is built on."""

    pipeline: Pipeline
    image_jobs: tuple[ImageJob, ...]
    scratch: Path
    _build_results: dict[str, BuildResult] = field(default_factory=dict, init=False)

    def run_all(self, *, setup: bool = False) -> tuple[ImagesReport, tuple[BuildkitTasksError, ...]]:
        """Build, verify and run each, after one setup if that is asked for; and what went wrong.

        An interruption ends it: what comes after is not begun.
        """
        report = ImagesReport()
        if setup:
            try:
                report = replace(report, setup=self._pipeline_for_all_platforms().setup())
            except BuildkitTasksError as error:
                return replace(report, error=str(error)), (error,)
        errors: list[BuildkitTasksError] = []
        for job in self.image_jobs:
            image_report, failure = self._run_job(job)
            if job.reported:
                report = replace(report, images=(*report.images, image_report))
            if failure is not None:
                errors.append(failure)
            if isinstance(failure, Interrupted):
                break
        return report, tuple(errors)

    def _pipeline_for_all_platforms(self) -> Pipeline:
        """The line for every platform that any of the images is for."""
        names = (str(platform) for job in self.image_jobs for platform in job.request.platforms)
        return self.pipeline.with_settings(
            replace(self.pipeline.settings, platforms=tuple(dict.fromkeys(names)))
        )

    def _run_job(self, job: ImageJob) -> tuple[ImageReport, BuildkitTasksError | None]:
        """One image as far as it gets. Of a dry run there is nothing to verify and to run."""
        report, platforms = ImageReport(name=job.name), job.request.platforms
        pipeline = self.pipeline.with_settings(job.settings)
        pipeline.notify(f"{job.name}: {', '.join(map(str, platforms))}")
        try:
            request = self._link_contexts(job)
            build_result = self._build_results[job.name] = pipeline.build(request)
            report = replace(report, build=build_result)
            if not job.reported:
                return report, None
            build_result = pipeline.release_build(request, build_result)
            if pipeline.commands.dry_run:
                return report, None
            report = _add_push_result(report, build_result)
            name = best_image_name(build_result)
            if report.verify is None:  # else it was proved where it was pushed to
                report = replace(report, verify=pipeline.resolver.verify(name, platforms))
                report = replace(report, run=pipeline.run_image(name, platforms))
        except BuildkitTasksError as error:
            pipeline.notify(f"{job.name}: {error}")
            return replace(report, error=str(error)), error
        return report, None

    def _link_contexts(self, job: ImageJob) -> BuildRequest:
        """The image's request, with the images that it is built on as its contexts."""
        contexts = (f"{context}={self._layout_context(name)}" for context, name in job.linked_contexts)
        return replace(job.request, build_contexts=(*job.request.build_contexts, *contexts))

    def _layout_context(self, name: str) -> str:
        """An image that was built, as a named context's value."""
        build_result = self._build_results.get(name)
        if build_result is None:
            raise BuildFailed(f"{name}, on which it is built, could not be built")
        layout_path = self.scratch / "layouts" / name
        if self.pipeline.commands.dry_run:
            return f"oci-layout://{layout_path}@sha256:DIGEST"
        if not layout_path.exists():
            from buildkit_tasks.oci.transports.layout import write_layout
            from buildkit_tasks.oci.transports.oci_archive import OciArchive

            archives = (
                output.dest for output in build_result.outputs if output.type == "oci" and output.dest
            )
            write_layout(OciArchive(Path(next(archives))), layout_path)
        return f"oci-layout://{layout_path}@{build_result.digest}"
