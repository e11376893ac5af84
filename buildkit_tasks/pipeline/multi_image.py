"""Build, verify and run several images: those of the settings, or the targets of a bake file.

One image that fails does not stop the others. An image that is the build context of another one is handed
to BuildKit as an OCI layout with exactly the bytes that were built.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.cache import image_caches
from buildkit_tasks.build.outputs import add_archive_output
from buildkit_tasks.build.request import STANDARD_INPUT, BuildRequest, check_request
from buildkit_tasks.config.images import check_image_names
from buildkit_tasks.errors import BuildFailed, BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.pipeline.bake import read_bake_jobs
from buildkit_tasks.pipeline.image_job import (
    ImageJob,
    ImageSelection,
    check_distinct_destinations,
    hint_for_one,
)
from buildkit_tasks.pipeline.last_build import RecordedImage, best_image_name, list_typed_options
from buildkit_tasks.report.model import BuildResult, ImageReport, ImagesReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.config.settings import ImageSettings
    from buildkit_tasks.pipeline.pipeline import Pipeline

__all__ = ["ImageSelection", "MultiImageBuild", "build_single_image", "open_images"]


@contextmanager
def open_images(pipeline: Pipeline, selection: ImageSelection) -> Iterator[MultiImageBuild]:
    """Yield the selected images, all of them checked before any is built.

    Raises :class:`UsageError` for an unknown name, a request that is not valid, and two images with the
    same destination. Temporary files are removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        scratch = Path(folder)
        image_jobs = (
            read_bake_jobs(pipeline, selection, scratch)
            if selection.bake_file
            else _image_jobs_from_settings(pipeline, selection)
        )
        for job in image_jobs:
            _check_job_request(job, is_target=bool(selection.bake_files))
        check_distinct_destinations([job for job in image_jobs if job.reported])
        yield MultiImageBuild(pipeline=pipeline, image_jobs=image_jobs, scratch=scratch, selection=selection)


def build_single_image(pipeline: Pipeline, name: str) -> BuildResult:
    """Build one image of the settings, by its name, without verifying or running it."""
    with open_images(pipeline, ImageSelection(names=(name,))) as build:
        (job,) = build.image_jobs
        return pipeline.with_settings(job.settings, name).build(job.request)


def _image_jobs_from_settings(pipeline: Pipeline, selection: ImageSelection) -> tuple[ImageJob, ...]:
    check_image_names(pipeline.settings, selection.names)
    tables = [
        table for table in pipeline.settings.images if not selection.names or table.name in selection.names
    ]
    if len(tables) > 1 and pipeline.settings.file == STANDARD_INPUT:
        raise UsageError(
            f"--file=- applies to one image, and there are {len(tables)}", hint=f"--image {tables[0].name}"
        )
    return tuple(_make_image_job(pipeline, table, selection) for table in tables)


def _make_image_job(pipeline: Pipeline, table: ImageSettings, selection: ImageSelection) -> ImageJob:
    name, settings, options = table.name, pipeline.settings.for_image(table), selection.options
    cache_from = options.get("cache_from", ())
    request = pipeline.with_settings(settings).create_request(
        **{
            **options,
            "outputs": add_archive_output(options.get("outputs", ()), f"dist/{name}.tar"),
            "cache_to": image_caches(options.get("cache_to", ()), "--cache-to", name),
            # The name as given, too: an inline cache, or a cache exported by buildx alone, has that name.
            "cache_from": (*cache_from, *image_caches(cache_from, "--cache-from", name)),
        }
    )
    return ImageJob(name=name, settings=settings, request=request)


def _check_job_request(job: ImageJob, *, is_target: bool) -> None:
    try:
        check_request(job.request)
    except UsageError as error:
        hint = hint_for_one(job.name, error.hint or "", is_target=is_target)
        raise UsageError(f"{job.name}: {error.message}", hint=hint) from error


def _add_push_result(report: ImageReport, build_result: BuildResult) -> ImageReport:
    """Move the verification, the runs and the tags of a push from the build's result to the report."""
    pushed = build_result.pushed
    if pushed is None:
        return report
    verify_failed = pushed.verify is not None and pushed.run is None
    return replace(
        report,
        build=replace(build_result, pushed=None),
        verify=pushed.verify,
        run=pushed.run,
        tags=pushed.tags,
        error="the verification failed: the image was neither run nor tagged" if verify_failed else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiImageBuild:
    """Several images, each after those that are its build contexts. Made by :func:`open_images`.

    ``scratch`` is a temporary directory for the OCI layouts of build contexts; ``selection`` is what was
    asked for.
    """

    pipeline: Pipeline
    image_jobs: tuple[ImageJob, ...]
    scratch: Path
    selection: ImageSelection
    _build_results: dict[str, BuildResult] = field(default_factory=dict, init=False)

    def run_all(self, *, setup: bool = False) -> tuple[ImagesReport, tuple[BuildkitTasksError, ...]]:
        """Build, release, verify and run every image; with ``setup``, set up once for all platforms first.

        Return the report, and the error of each image that failed. If the set-up fails or the user
        interrupts, no further image is started. Raises :class:`EngineError` if there is no engine.
        """
        report = ImagesReport()
        for job in self.image_jobs:
            self.pipeline.with_settings(job.settings).check_cpu(job.request.platforms)
        restore_record = self.pipeline.record_start(self._describe_jobs())
        if setup:
            try:
                report = replace(report, setup=self._pipeline_for_all_platforms().setup())
            except BuildkitTasksError as error:
                if isinstance(error, UsageError):
                    restore_record()
                return replace(report, error=str(error)), (error,)
        self.pipeline.client_engine  # noqa: B018 - no engine is one error, not one for each image
        errors: list[BuildkitTasksError] = []
        for job in self.image_jobs:
            image_report, failure = self._run_job(job)
            if job.reported:
                report = replace(report, images=(*report.images, image_report))
            if failure is not None:
                errors.append(failure)
            if isinstance(failure, Interrupted):
                break
        if not self._build_results and all(isinstance(error, UsageError) for error in errors):
            restore_record()
        return report, tuple(errors)

    def _describe_jobs(self) -> Iterator[RecordedImage]:
        """Yield what is recorded of each image that is asked for."""
        selection = self.selection
        overrides = tuple(argument for each in selection.bake_overrides for argument in ("--set", each))
        for job in filter(lambda job: job.reported, self.image_jobs):
            options = list_typed_options(
                job.settings, selection.options, is_target=bool(selection.bake_files)
            )
            yield RecordedImage.from_request(
                job.name, job.request, (*options, *overrides), bake_files=selection.bake_files
            )

    def _pipeline_for_all_platforms(self) -> Pipeline:
        names = (str(platform) for job in self.image_jobs for platform in job.request.platforms)
        settings = replace(self.pipeline.settings, platforms=tuple(dict.fromkeys(names)))
        return self.pipeline.with_settings(settings)

    def _run_job(self, job: ImageJob) -> tuple[ImageReport, BuildkitTasksError | None]:
        """Return the report of one image as far as it got, and the error that stopped it."""
        report, platforms = ImageReport(name=job.name), job.request.platforms
        pipeline = self.pipeline.with_settings(job.settings)
        pipeline.notify(f"{job.name}: {', '.join(map(str, platforms))}")
        try:
            request = self._link_contexts(job)
            build_result = self._build_results[job.name] = pipeline.build_checked(request)
            report = replace(report, build=build_result)
            if not job.reported:
                return report, None
            pipeline.record_result(job.name, build_result)
            build_result = pipeline.release_build(request, build_result)
            if pipeline.commands.dry_run:
                return report, None  # there is no image
            report = _add_push_result(report, build_result)
            if report.verify is None:  # not verified in the registry
                name = best_image_name(build_result)
                report = replace(report, verify=pipeline.verify_image(name, platforms))
                report = replace(report, run=pipeline.run_image(name, platforms))
        except BuildkitTasksError as error:
            pipeline.notify(f"{job.name}: {error}")
            return replace(report, error=str(error)), error
        return report, None

    def _link_contexts(self, job: ImageJob) -> BuildRequest:
        """Return the job's request with the images that it is built on as build contexts."""
        contexts = (f"{context}={self._layout_context(name)}" for context, name in job.linked_contexts)
        return replace(job.request, build_contexts=(*job.request.build_contexts, *contexts))

    def _layout_context(self, name: str) -> str:
        """Return the value of a named context for an image built before: ``oci-layout://PATH@DIGEST``."""
        build_result = self._build_results.get(name)
        if build_result is None:
            raise BuildFailed(f"not built, because the build of {name}, its base, failed")
        layout_path = self.scratch / "layouts" / name
        if self.pipeline.commands.dry_run:
            return f"oci-layout://{layout_path}@sha256:DIGEST"
        if not layout_path.exists():
            from buildkit_tasks.oci.transports.layout import write_layout
            from buildkit_tasks.oci.transports.oci_archive import OciArchive

            archives = (
                output.dest
                for output in build_result.outputs
                if output.type == "oci" and output.dest and not output.unpacked
            )
            write_layout(OciArchive(Path(next(archives))), layout_path)
        return f"oci-layout://{layout_path}@{build_result.digest}"
