"""The Invoke tasks. Each reads its options, calls one service, shows the report and sets the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from buildkit_tasks.cli.declared_task import create_namespace, task
from buildkit_tasks.cli.exit_codes import images_exit_code, push_exit_code, run_exit_code, verify_exit_code
from buildkit_tasks.cli.options import (
    ARCHIVE,
    BAKE_OPTIONS,
    BUILD_OPTIONS,
    CALL_OPTIONS,
    ENGINE_OPTIONS,
    HOST_OPTIONS,
    IMAGE,
    IMAGE_NAMES,
    KEEP_STATE,
    NO_PUSH,
    NO_VERIFY,
    PART_OPTIONS,
    PLATFORM,
    RECREATE,
    REPORT,
    RUN_OPTIONS,
    SETUP_OPTIONS,
    SPLIT,
    TAG,
    VERIFY_OPTIONS,
    VERIFY_TIMEOUT,
)
from buildkit_tasks.cli.requests import (
    build_request,
    call_method,
    check_release_options,
    chosen_images,
    explicit_platforms,
    image_selection,
    release_from_options,
    releases_of_images,
)
from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.system.output import tolerate_closed_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.cli.invocation import RunProgress, TaskContext
    from buildkit_tasks.pipeline.chosen_images import ChosenImage
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
    from buildkit_tasks.report.model import PushResult, RunReport, VerifyReport

__all__ = [
    "arch_matrix",
    "build_multiarch",
    "doctor",
    "merge_multiarch",
    "ns",
    "push_multiarch",
    "remove_builder",
    "run_emulated",
    "setup_builder",
    "stop_engine",
    "verify_arch",
]


@task(*SETUP_OPTIONS, RECREATE, KEEP_STATE, REPORT)
def setup_builder(ctx: TaskContext) -> None:
    """Set up engine, emulators and builder, and run a small program on each platform."""
    recreate, keep_state = ctx.options["recreate"], ctx.options["keep_state"]
    if keep_state and not recreate:
        raise UsageError("--keep-state applies to a builder that is recreated", hint="add --recreate")
    ctx.show_report(
        ctx.pipeline.setup(recreate=recreate, keep_state=keep_state), failure_code=EngineError.exit_code
    )


@task(
    *BUILD_OPTIONS,
    *CALL_OPTIONS,
    NO_VERIFY,
    NO_PUSH,
    SPLIT,
    IMAGE_NAMES,
    *BAKE_OPTIONS,
    PLATFORM,
    *VERIFY_OPTIONS,
    *RUN_OPTIONS,
    *ENGINE_OPTIONS,
    REPORT,
)
def build_multiarch(ctx: TaskContext) -> None:
    """Build one image for many platforms; without --output, --push or --load as an OCI archive in dist/.

    A pushed image is verified and run by its digest in the registry before it is tagged.

    Several images, from the settings or a bake file, are also verified and run; with --no-push one, too.
    """
    if call_method(ctx):
        _call_frontend(ctx)
    elif _has_multiple_images(ctx):
        _build_multiple_images(ctx)
    elif ctx.options["no_push"]:
        _run_matrix(ctx)
    else:
        request = build_request(ctx)
        check_release_options(ctx, request, (*VERIFY_OPTIONS, *RUN_OPTIONS))
        with ctx.show_run_progress() as progress:
            result = ctx.pipeline.release_build(request, ctx.pipeline.build(request), progress)
        ctx.show_report(result, failure_code=push_exit_code(result.pushed))


@task(IMAGE, PLATFORM, *VERIFY_OPTIONS, *HOST_OPTIONS, VERIFY_TIMEOUT, REPORT)
def verify_arch(ctx: TaskContext) -> None:
    """Check index, configuration and binaries of every platform, or whether the image starts on a host."""
    from buildkit_tasks.verify.host_match import read_hosts

    hosts = read_hosts(ctx.options["for_"], ctx.options["for_nodes"])
    explicit_platforms(ctx.settings)  # a name that is not valid is found before an image is looked for

    def verify(pipeline: Pipeline, image: ChosenImage) -> VerifyReport:
        expected = () if hosts else explicit_platforms(image.settings)
        return pipeline.verify_image(image.require_location(), expected, hosts)

    images = chosen_images(ctx)
    if len(images) == 1:
        report = verify(ctx.pipeline.with_settings(images[0].settings), images[0])
        ctx.show_report(report, failure_code=verify_exit_code(report), even_dry_run=True)
    else:
        _report_each(ctx, images, "verify", verify, even_dry_run=True)


@task(IMAGE, PLATFORM, *RUN_OPTIONS, *ENGINE_OPTIONS, REPORT)
def run_emulated(ctx: TaskContext) -> None:
    """Run the image on every platform, under QEMU where needed, and check its exit status and output."""

    def run(pipeline: Pipeline, image: ChosenImage, progress: RunProgress | None = None) -> RunReport:
        return pipeline.run_image(image.require_manifests(), explicit_platforms(image.settings), progress)

    explicit_platforms(ctx.settings)  # a name that is not valid is found before an image is looked for
    images = chosen_images(ctx)
    if len(images) == 1:
        with ctx.show_run_progress() as progress:
            report = run(ctx.pipeline.with_settings(images[0].settings), images[0], progress)
        ctx.show_report(report, failure_code=run_exit_code(report))
    else:
        _report_each(ctx, images, "run", run)


@task(
    *SETUP_OPTIONS,
    *(option for option in BUILD_OPTIONS if option.name not in ("builder", "fallback", "allow")),
    NO_VERIFY,
    NO_PUSH,
    SPLIT,
    IMAGE_NAMES,
    *BAKE_OPTIONS,
    *VERIFY_OPTIONS,
    *RUN_OPTIONS,
    REPORT,
)
def arch_matrix(ctx: TaskContext) -> None:
    """Set up, build, verify and run for every platform, with one row for each."""
    if _has_multiple_images(ctx):
        _build_multiple_images(ctx, setup=True)
    else:
        _run_matrix(ctx)


@task(ARCHIVE, TAG, NO_VERIFY, PLATFORM, *VERIFY_OPTIONS, *RUN_OPTIONS, *ENGINE_OPTIONS, REPORT)
def push_multiarch(ctx: TaskContext) -> None:
    """Push a built image unchanged: by digest, then verify and run it, then tag it."""
    images = chosen_images(ctx, "archive")
    releases = releases_of_images(ctx, images)
    if ctx.dry_run:
        _print_push_plans(ctx, releases)
    elif len(images) == 1:
        service, spec = releases[images[0]]
        with ctx.show_run_progress() as progress:
            result = service.push(images[0].require_manifests(), spec, progress)
        ctx.show_report(result, failure_code=push_exit_code(result))
    else:

        def push(_: Pipeline, image: ChosenImage) -> PushResult:
            service, spec = releases[image]
            return service.push(image.require_manifests(), spec)

        _report_each(ctx, images, "push", push)


@task(*PART_OPTIONS, TAG, NO_VERIFY, PLATFORM, *VERIFY_OPTIONS, *RUN_OPTIONS, *ENGINE_OPTIONS, REPORT)
def merge_multiarch(ctx: TaskContext) -> None:
    """Merge parts that were pushed by digest into one image, verify and run it, then tag it."""
    from buildkit_tasks.config.images import settings_for_image
    from buildkit_tasks.pipeline.parts_file import read_parts

    image = ctx.options["image"]
    releases, release = release_from_options(ctx, settings_for_image(ctx.settings, image))
    parts = read_parts(ctx.options["part"], ctx.options["parts_file"], image)
    if ctx.dry_run:
        plan = releases.plan_merge(parts, release)
        ctx.print_result(plan.to_dict(), plan.to_text())
        return
    with ctx.show_run_progress() as progress:
        result = releases.merge(parts, release, progress)
    ctx.show_report(result, failure_code=push_exit_code(result))


@task(PLATFORM, *ENGINE_OPTIONS)
def doctor(ctx: TaskContext) -> None:
    """Report what is installed, what is missing, and the next command. Changes nothing."""
    from buildkit_tasks.pipeline.doctor import diagnose_environment

    diagnosis = diagnose_environment(ctx.pipeline)
    ctx.print_result(diagnosis.to_dict(), diagnosis.to_text())
    ctx.exit_code = 0 if diagnosis.ok else EngineError.exit_code


@task(*SETUP_OPTIONS[:1], *ENGINE_OPTIONS[:1], KEEP_STATE)
def remove_builder(ctx: TaskContext) -> None:
    """Remove the builder and the binfmt_misc handlers that setup-builder added, and nothing else."""
    removed = ctx.pipeline.remove_builder(keep_state=ctx.options["keep_state"])
    verb = "would remove" if ctx.dry_run else "removed"
    ctx.print_result({"ok": True, "removed": removed}, f"{verb}: {', '.join(removed) or 'nothing'}")


@task(KEEP_STATE)
def stop_engine(ctx: TaskContext) -> None:
    """Stop the private engine and remove its state; downloaded packages stay cached."""
    from buildkit_tasks.host.engine.private import stop_private_engine

    pipeline = ctx.pipeline
    stopped = stop_private_engine(
        pipeline.settings, pipeline.commands, pipeline.notify, keep_state=ctx.options["keep_state"]
    )
    message = "would stop the private engine" if ctx.dry_run else "stopped the private engine"
    ctx.print_result({"ok": True, "stopped": stopped}, message if stopped else "no private engine is running")


def _run_matrix(ctx: TaskContext) -> None:
    """Set up, build, verify and run one image."""
    request = build_request(ctx)
    check_release_options(ctx, request)
    with ctx.show_run_progress() as progress:
        report, error = ctx.pipeline.run_matrix(request, progress)
    ctx.raise_in_dry_run([error] if error else [])
    code = 1 if report.run is None else run_exit_code(report.run)
    ctx.show_report(report, failure_code=error.exit_code if error else code)
    if error:
        ctx.notify(f"error: {error}")


def _call_frontend(ctx: TaskContext) -> None:
    """Print what the frontend of each Dockerfile says, as buildx does, and end with its exit status."""
    from buildkit_tasks.pipeline.frontend_calls import call_frontends, make_call_document
    from buildkit_tasks.printable import escape_message

    selection = image_selection(ctx) if _has_multiple_images(ctx) else None
    request = build_request(ctx) if selection is None else None
    answers = {}
    for name, answer in call_frontends(ctx.pipeline, selection, request):
        answers[name] = answer
        if not ctx.json_output and not ctx.dry_run:
            heading = f"{name}:\n" if name else ""
            with tolerate_closed_pipe(sys.stdout):
                sys.stdout.write(escape_message(heading + answer.output))
        if answer.error:
            ctx.notify(f"error: {answer.error}")
        ctx.exit_code = max(ctx.exit_code, answer.error.exit_code if answer.error else answer.exit_code)
    if ctx.json_output:
        document = {"ok": True, "dry_run": True} if ctx.dry_run else make_call_document(answers)
        ctx.print_result(document, "")


def _has_multiple_images(ctx: TaskContext) -> bool:
    """Return True if images are selected by name, from the settings or a bake file."""
    return bool(ctx.options["bake"] or ctx.options["image"] or ctx.settings.images)


def _build_multiple_images(ctx: TaskContext, *, setup: bool = False) -> None:
    """Build, verify and run each selected image."""
    from buildkit_tasks.pipeline.multi_image import open_images

    with open_images(ctx.pipeline, image_selection(ctx)) as images:
        report, errors = images.run_all(setup=setup)
    ctx.raise_in_dry_run(errors)
    ctx.show_report(report, failure_code=images_exit_code(report, errors))
    if report.error:
        ctx.notify(f"error: {report.error}")


def _report_each(
    ctx: TaskContext,
    images: Sequence[ChosenImage],
    step: str,
    make_report: Callable[[Pipeline, ChosenImage], VerifyReport | RunReport | PushResult],
    *,
    even_dry_run: bool = False,
) -> None:
    """Show one report of several images, each verified, run or pushed under its own settings."""
    from buildkit_tasks.pipeline.chosen_images import report_each

    report, errors = report_each(ctx.pipeline, images, step, make_report)
    if not even_dry_run:
        ctx.raise_in_dry_run(errors)
    ctx.show_report(report, failure_code=images_exit_code(report, errors), even_dry_run=even_dry_run)


def _print_push_plans(
    ctx: TaskContext, releases: Mapping[ChosenImage, tuple[ReleaseService, ReleaseSpec]]
) -> None:
    """Print what a push would do; the document of several images has one for each."""
    plans = {
        image.label: service.plan_push(image.require_manifests(), spec)
        for image, (service, spec) in releases.items()
    }
    documents = [{"name": label, **plan.to_dict()} for label, plan in plans.items()]
    if len(documents) == 1:
        (plan,) = plans.values()
        ctx.print_result(plan.to_dict(), plan.to_text())
    else:
        lines = [f"{label}: {line}" for label, plan in plans.items() for line in plan.to_text().split("\n")]
        ctx.print_result({"ok": True, "dry_run": True, "images": documents}, "\n".join(lines))


ns = create_namespace(
    setup_builder,
    build_multiarch,
    verify_arch,
    run_emulated,
    arch_matrix,
    push_multiarch,
    merge_multiarch,
    doctor,
    remove_builder,
    stop_engine,
)
