"""The Invoke tasks. A body is: the line, one call of a service, a report, an exit code."""

from __future__ import annotations

from buildkit_tasks.cli.exit_codes import images_exit_code, push_exit_code, run_exit_code, verify_exit_code
from buildkit_tasks.cli.invocation import Edge, collection, job
from buildkit_tasks.cli.options import (
    ARCHIVE,
    BAKE,
    BUILD,
    CACHE_STATE,
    ENVIRONMENT,
    HOSTS,
    IMAGE,
    IMAGES,
    NO_VERIFY,
    PARTS,
    PLATFORM,
    RECREATE,
    REPORT,
    RUN,
    SETUP,
    SPLIT,
    TAG,
    VERIFY,
)
from buildkit_tasks.cli.requests import (
    build_request,
    check_release_options,
    image_selection,
    release_from_options,
)
from buildkit_tasks.errors import EngineError, UsageError

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


@job(*SETUP, RECREATE, CACHE_STATE, REPORT)
def setup_builder(edge: Edge) -> None:
    """Make engine, emulators and builder ready, and prove it by running a program for each platform."""
    recreate, keep_state = edge.options["recreate"], edge.options["keep_state"]
    if keep_state and not recreate:
        raise UsageError("--keep-state is for a builder that is made anew", hint="add --recreate")
    edge.show(edge.line.setup(recreate=recreate, keep_state=keep_state), code=EngineError.exit_code)


@job(*BUILD, NO_VERIFY, SPLIT, IMAGES, BAKE, PLATFORM, *VERIFY, *RUN, *ENVIRONMENT, REPORT)
def build_multiarch(edge: Edge) -> None:
    """Build one image for many platforms; with no output named, as an OCI archive in dist/.

    What is pushed is verified and run where it lies, by its digest, before a tag names it.

    Several images, of the settings or of a bake file, are verified and run as well.
    """
    if _has_several(edge):
        _show_several(edge)
    else:
        request = build_request(edge)
        check_release_options(edge, request, (*VERIFY, *RUN))
        with edge.watching() as watch:
            result = edge.line.release(request, edge.line.build(request), watch)
        edge.show(result, code=push_exit_code(result.pushed))


@job(IMAGE, PLATFORM, *VERIFY, *HOSTS, REPORT)
def verify_arch(edge: Edge) -> None:
    """Prove that every platform in an image is what it says, or that it would start somewhere."""
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.platforms import parse_platforms
    from buildkit_tasks.verify.host_match import hosts_of

    settings, options = edge.settings, edge.options
    hosts = hosts_of(options["for_"], options["for_nodes"])
    named = settings.given("platforms") and not hosts
    expected = parse_platforms(settings.platforms) if named else ()
    report = Images(settings=settings, run=edge.run).verify(options["image"], expected, hosts)
    edge.show(report, code=verify_exit_code(report), always=True)


@job(IMAGE, PLATFORM, *RUN, *ENVIRONMENT, REPORT)
def run_emulated(edge: Edge) -> None:
    """Run every platform's image, under QEMU where need be, and check what it prints."""
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.pipeline.runs import Runs
    from buildkit_tasks.platforms import parse_platforms

    settings, images = edge.settings, Images(settings=edge.settings, run=edge.run)
    runs = Runs(settings=settings, run=edge.run, tell=edge.tell, images=images, line=lambda: edge.line)
    wanted = parse_platforms(settings.platforms) if settings.given("platforms") else ()
    with edge.watching() as watch:
        report = runs.emulate(edge.options["image"], wanted, watch)
    edge.show(report, code=run_exit_code(report))


@job(
    *SETUP,
    *(option for option in BUILD if option.name not in ("builder", "fallback", "allow")),
    NO_VERIFY,
    SPLIT,
    IMAGES,
    BAKE,
    *VERIFY,
    *RUN,
    REPORT,
)
def arch_matrix(edge: Edge) -> None:
    """Set up, build, verify and run for every platform: one row for each."""
    if _has_several(edge):
        _show_several(edge, setup=True)
        return
    request = build_request(edge)
    check_release_options(edge, request)
    with edge.watching() as watch:
        report, error = edge.line.matrix(request, watch)
    code = 1 if report.run is None else run_exit_code(report.run)
    edge.show(report, code=error.exit_code if error else code)
    if error:
        edge.tell(f"error: {error}")


@job(ARCHIVE, TAG, NO_VERIFY, PLATFORM, *VERIFY, *RUN, *ENVIRONMENT, REPORT)
def push_multiarch(edge: Edge) -> None:
    """Send a built image to a registry, byte for byte: by digest first, its tags once it is proved."""
    releases, release = release_from_options(edge)
    if edge.dry_run:
        plan = releases.plan_push(edge.options["archive"], release)
        edge.say(plan.document(), plan.text())
        return
    with edge.watching() as watch:
        result = releases.push(edge.options["archive"], release, watch)
    edge.show(result, code=push_exit_code(result))


@job(*PARTS, TAG, NO_VERIFY, PLATFORM, *VERIFY, *RUN, *ENVIRONMENT, REPORT)
def merge_multiarch(edge: Edge) -> None:
    """Make one image of parts that were pushed by digest, and name it once it is proved."""
    from buildkit_tasks.pipeline.parts_file import read_parts

    image = edge.options["image"]
    releases, release = release_from_options(edge, image)
    parts = read_parts(edge.options["part"], edge.options["parts_file"], image)
    if edge.dry_run:
        plan = releases.plan_merge(parts, release)
        edge.say(plan.document(), plan.text())
        return
    with edge.watching() as watch:
        result = releases.merge(parts, release, watch)
    edge.show(result, code=push_exit_code(result))


@job(PLATFORM, *ENVIRONMENT)
def doctor(edge: Edge) -> None:
    """Say what is there, what is missing, and the one next command. Changes nothing."""
    from buildkit_tasks.pipeline.doctor import examine

    diagnosis = examine(edge.line)
    edge.say(diagnosis.document(), diagnosis.text())
    edge.code = 0 if diagnosis.ok else EngineError.exit_code


@job(*SETUP[:1], *ENVIRONMENT[:1], CACHE_STATE)
def remove_builder(edge: Edge) -> None:
    """Remove the builder and the binfmt_misc handlers that were added here, and nothing else."""
    removed = edge.line.remove(keep_state=edge.options["keep_state"])
    done = "would remove" if edge.dry_run else "removed"
    edge.say({"ok": True, "removed": removed}, f"{done}: {', '.join(removed) or 'nothing is there'}")


@job(CACHE_STATE)
def stop_engine(edge: Edge) -> None:
    """End the private engine and remove what it kept; the downloaded packages stay as a cache."""
    from buildkit_tasks.host.engine.private import stop_private_engine

    line = edge.line
    stopped = stop_private_engine(line.settings, line.run, line.tell, keep_state=edge.options["keep_state"])
    done = "it would be stopped" if edge.dry_run else "stopped"
    edge.say({"ok": True, "stopped": stopped}, done if stopped else "no private engine was running")


def _has_several(edge: Edge) -> bool:
    """Whether images are wanted by their names: those of the settings or of a bake file."""
    return bool(edge.options["bake"] or edge.options["image"] or edge.settings.images)


def _show_several(edge: Edge, *, setup: bool = False) -> None:
    """Each image's build, verification and runs."""
    from buildkit_tasks.pipeline.multi_image import several

    with several(edge.line, image_selection(edge)) as images:
        report, errors = images.report(setup=setup)
    edge.show(report, code=images_exit_code(report, errors))
    if report.error:
        edge.tell(f"error: {report.error}")


ns = collection(
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
