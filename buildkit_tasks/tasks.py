"""The Invoke tasks. Each reads its options, calls one service, shows the report and sets the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.cli.declared_task import create_namespace, task
from buildkit_tasks.cli.exit_codes import images_exit_code, push_exit_code, run_exit_code, verify_exit_code
from buildkit_tasks.cli.options import (
    ARCHIVE,
    BAKE_FILE,
    BUILD_OPTIONS,
    ENGINE_OPTIONS,
    HOST_OPTIONS,
    IMAGE,
    IMAGE_NAMES,
    KEEP_STATE,
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
)
from buildkit_tasks.cli.requests import (
    build_request,
    check_release_options,
    image_selection,
    release_from_options,
)
from buildkit_tasks.errors import EngineError, UsageError

if TYPE_CHECKING:
    from buildkit_tasks.cli.invocation import TaskContext

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
    NO_VERIFY,
    SPLIT,
    IMAGE_NAMES,
    BAKE_FILE,
    PLATFORM,
    *VERIFY_OPTIONS,
    *RUN_OPTIONS,
    *ENGINE_OPTIONS,
    REPORT,
)
def build_multiarch(ctx: TaskContext) -> None:
    """Build one image for many platforms; without --output, --push or --load as an OCI archive in dist/.

    A pushed image is verified and run by its digest in the registry before it is tagged.

    Several images, from the settings or a bake file, are also verified and run.
    """
    if _has_multiple_images(ctx):
        _build_multiple_images(ctx)
    else:
        request = build_request(ctx)
        check_release_options(ctx, request, (*VERIFY_OPTIONS, *RUN_OPTIONS))
        with ctx.show_run_progress() as progress:
            result = ctx.pipeline.release_build(request, ctx.pipeline.build(request), progress)
        ctx.show_report(result, failure_code=push_exit_code(result.pushed))


@task(IMAGE, PLATFORM, *VERIFY_OPTIONS, *HOST_OPTIONS, REPORT)
def verify_arch(ctx: TaskContext) -> None:
    """Check index, configuration and binaries of every platform, or whether the image starts on a host."""
    from buildkit_tasks.platforms import parse_platforms
    from buildkit_tasks.verify.host_match import read_hosts

    settings, options = ctx.settings, ctx.options
    hosts = read_hosts(options["for_"], options["for_nodes"])
    platforms_named = settings.is_explicit("platforms") and not hosts
    expected = parse_platforms(settings.platforms) if platforms_named else ()
    report = ctx.pipeline.verify_image(options["image"], expected, hosts)
    ctx.show_report(report, failure_code=verify_exit_code(report), even_dry_run=True)


@task(IMAGE, PLATFORM, *RUN_OPTIONS, *ENGINE_OPTIONS, REPORT)
def run_emulated(ctx: TaskContext) -> None:
    """Run the image on every platform, under QEMU where needed, and check its exit status and output."""
    from buildkit_tasks.platforms import parse_platforms

    settings = ctx.settings
    platforms = parse_platforms(settings.platforms) if settings.is_explicit("platforms") else ()
    with ctx.show_run_progress() as progress:
        report = ctx.pipeline.run_image(ctx.options["image"], platforms, progress)
    ctx.show_report(report, failure_code=run_exit_code(report))


@task(
    *SETUP_OPTIONS,
    *(option for option in BUILD_OPTIONS if option.name not in ("builder", "fallback", "allow")),
    NO_VERIFY,
    SPLIT,
    IMAGE_NAMES,
    BAKE_FILE,
    *VERIFY_OPTIONS,
    *RUN_OPTIONS,
    REPORT,
)
def arch_matrix(ctx: TaskContext) -> None:
    """Set up, build, verify and run for every platform, with one row for each."""
    if _has_multiple_images(ctx):
        _build_multiple_images(ctx, setup=True)
        return
    request = build_request(ctx)
    check_release_options(ctx, request)
    with ctx.show_run_progress() as progress:
        report, error = ctx.pipeline.run_matrix(request, progress)
    code = 1 if report.run is None else run_exit_code(report.run)
    ctx.show_report(report, failure_code=error.exit_code if error else code)
    if error:
        ctx.notify(f"error: {error}")


@task(ARCHIVE, TAG, NO_VERIFY, PLATFORM, *VERIFY_OPTIONS, *RUN_OPTIONS, *ENGINE_OPTIONS, REPORT)
def push_multiarch(ctx: TaskContext) -> None:
    """Push a built image unchanged: by digest, then verify and run it, then tag it."""
    releases, release = release_from_options(ctx)
    if ctx.dry_run:
        plan = releases.plan_push(ctx.options["archive"], release)
        ctx.print_result(plan.to_dict(), plan.to_text())
        return
    with ctx.show_run_progress() as progress:
        result = releases.push(ctx.options["archive"], release, progress)
    ctx.show_report(result, failure_code=push_exit_code(result))


@task(*PART_OPTIONS, TAG, NO_VERIFY, PLATFORM, *VERIFY_OPTIONS, *RUN_OPTIONS, *ENGINE_OPTIONS, REPORT)
def merge_multiarch(ctx: TaskContext) -> None:
    """Merge parts that were pushed by digest into one image, verify and run it, then tag it."""
    from buildkit_tasks.pipeline.parts_file import read_parts

    image = ctx.options["image"]
    releases, release = release_from_options(ctx, image)
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


def _has_multiple_images(ctx: TaskContext) -> bool:
    """Return True if images are selected by name, from the settings or a bake file."""
    return bool(ctx.options["bake"] or ctx.options["image"] or ctx.settings.images)


def _build_multiple_images(ctx: TaskContext, *, setup: bool = False) -> None:
    """Build, verify and run each selected image."""
    from buildkit_tasks.pipeline.multi_image import open_images

    with open_images(ctx.pipeline, image_selection(ctx)) as images:
        report, errors = images.run_all(setup=setup)
    ctx.show_report(report, failure_code=images_exit_code(report, errors))
    if report.error:
        ctx.notify(f"error: {report.error}")


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
