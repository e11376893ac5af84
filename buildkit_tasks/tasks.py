"""The Invoke tasks. A body is: the line, one call of a service, a report, an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.cli.invocation import Option
    from buildkit_tasks.errors import BuildkitTasksError, UsageError
    from buildkit_tasks.pipeline.image_job import Choice
    from buildkit_tasks.pipeline.release import Release, Releases
    from buildkit_tasks.report.model import ImagesReport, PushResult, RunReport, VerifyReport

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

_ENVIRONMENT, _LIMIT, _TIMEOUT, _INTERRUPTED = 3, 5, 124, 130


@job(*SETUP, RECREATE, CACHE_STATE, REPORT)
def setup_builder(edge: Edge) -> None:
    """Make engine, emulators and builder ready, and prove it by running a program for each platform."""
    recreate, keep_state = edge.options["recreate"], edge.options["keep_state"]
    if keep_state and not recreate:
        raise _usage("--keep-state is for a builder that is made anew", hint="add --recreate")
    edge.show(edge.line.setup(recreate=recreate, keep_state=keep_state), code=_ENVIRONMENT)


@job(*BUILD, NO_VERIFY, SPLIT, IMAGES, BAKE, PLATFORM, *VERIFY, *RUN, *ENVIRONMENT, REPORT)
def build_multiarch(edge: Edge) -> None:
    """Build one image for many platforms; with no output named, as an OCI archive in dist/.

    What is pushed is verified and run where it lies, by its digest, before a tag names it.

    Several images, of the settings or of a bake file, are verified and run as well.
    """
    if _has_several(edge):
        _show_several(edge)
    else:
        request = _request(edge)
        _check_proof(edge, request, (*VERIFY, *RUN))
        with edge.watching() as watch:
            result = edge.line.release(request, edge.line.build(request), watch)
        edge.show(result, code=_push_code(result.pushed))


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
    edge.show(report, code=_verify_code(report), always=True)


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
    edge.show(report, code=_run_code(report))


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
    request = _request(edge)
    _check_proof(edge, request)
    with edge.watching() as watch:
        report, error = edge.line.matrix(request, watch)
    code = 1 if report.run is None else _run_code(report.run)
    edge.show(report, code=error.exit_code if error else code)
    if error:
        edge.tell(f"error: {error}")


@job(ARCHIVE, TAG, NO_VERIFY, PLATFORM, *VERIFY, *RUN, *ENVIRONMENT, REPORT)
def push_multiarch(edge: Edge) -> None:
    """Send a built image to a registry, byte for byte: by digest first, its tags once it is proved."""
    releases, release = _release(edge)
    if edge.dry_run:
        plan = releases.plan_push(edge.options["archive"], release)
        edge.say(plan.document(), plan.text())
        return
    with edge.watching() as watch:
        result = releases.push(edge.options["archive"], release, watch)
    edge.show(result, code=_push_code(result))


@job(*PARTS, TAG, NO_VERIFY, PLATFORM, *VERIFY, *RUN, *ENVIRONMENT, REPORT)
def merge_multiarch(edge: Edge) -> None:
    """Make one image of parts that were pushed by digest, and name it once it is proved."""
    from buildkit_tasks.pipeline.parts_file import read_parts

    image = edge.options["image"]
    releases, release = _release(edge, image)
    parts = read_parts(edge.options["part"], edge.options["parts_file"], image)
    if edge.dry_run:
        plan = releases.plan_merge(parts, release)
        edge.say(plan.document(), plan.text())
        return
    with edge.watching() as watch:
        result = releases.merge(parts, release, watch)
    edge.show(result, code=_push_code(result))


@job(PLATFORM, *ENVIRONMENT)
def doctor(edge: Edge) -> None:
    """Say what is there, what is missing, and the one next command. Changes nothing."""
    from buildkit_tasks.pipeline.doctor import examine

    diagnosis = examine(edge.line)
    edge.say(diagnosis.document(), diagnosis.text())
    edge.code = 0 if diagnosis.ok else _ENVIRONMENT


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

    with several(edge.line, _choice(edge)) as images:
        report, errors = images.report(setup=setup)
    edge.show(report, code=_images_code(report, errors))
    if report.error:
        edge.tell(f"error: {report.error}")


def _images_code(report: ImagesReport, errors: Iterable[BuildkitTasksError]) -> int:
    """130 if it was interrupted, 1 if any check, build or run failed; else the highest of the others."""
    codes = {error.exit_code for error in errors}
    codes |= {_verify_code(row.verify) for row in report.images if row.verify and not row.verify.ok}
    codes |= {_run_code(row.run) for row in report.images if row.run and not row.run.ok}
    return next((code for code in (_INTERRUPTED, 1) if code in codes), max(codes, default=1))


def _choice(edge: Edge) -> Choice:
    from buildkit_tasks.pipeline.image_job import Choice

    bake = edge.options["bake"]
    if bake and edge.options["image"]:
        raise _usage("--image is for the images of the settings", hint="--target names those of a bake file")
    words = ",".join(edge.options["target" if bake else "image"])
    names = tuple(word.strip() for word in words.split(",") if word.strip())
    return Choice(names=names, bake=bake, options=_options(edge))


def _release(edge: Edge, image: str = "") -> tuple[Releases, Release]:
    """What releases, and the release that the settings and options describe: those of one image, if named."""
    from buildkit_tasks.config.images import settings_for_image
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.pipeline.release import Release, Releases
    from buildkit_tasks.pipeline.runs import Runs
    from buildkit_tasks.platforms import parse_platforms

    settings = settings_for_image(edge.settings, image)
    images = Images(settings=settings, run=edge.run)
    line = (lambda: edge.line.under(settings)) if image else (lambda: edge.line)
    runs = Runs(settings=settings, run=edge.run, tell=edge.tell, images=images, line=line)
    expected = parse_platforms(settings.platforms) if settings.given("platforms") else ()
    release = Release.of(settings.tags, expected, proved=not edge.options["no_verify"])
    return Releases(images=images, runs=runs), release


def _check_proof(edge: Edge, request: BuildRequest, proving: Iterable[Option] = ()) -> None:
    """Refuse ``--no-verify``, and what says how to prove, for a build of which nothing is proved."""
    from buildkit_tasks.config.settings import Origin

    if any(output.pushes for output in request.outputs) and not request.split:
        return
    origins = edge.settings.origins
    given = [each.name for each in proving if origins.get(each.setting) is Origin.FLAG]
    given += [] if request.proved else ["no_verify"]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise _usage(
            f"{words}: nothing is pushed, so that there is no release to be proved",
            hint="add --push, or say it to inv verify-arch and inv run-emulated",
        )


def _usage(message: str, *, hint: str) -> UsageError:
    from buildkit_tasks.errors import UsageError

    return UsageError(message, hint=hint)


def _request(edge: Edge) -> BuildRequest:
    """The build request: options that are no settings, joined with those that are."""
    return edge.line.request(**_options(edge))


def _options(edge: Edge) -> dict[str, Any]:
    """The options of a build that are no settings, by the names of the request."""
    from buildkit_tasks.build.outputs import OutputSpec

    given = edge.options
    outputs = [OutputSpec.parse(text) for text in given["output"]]
    if given["push"] or given["split"]:
        outputs.append(OutputSpec(type="registry"))
    lists: dict[str, Any] = {
        field: tuple(given[name])
        for name, field in (
            ("build_context", "build_contexts"),
            ("cache_from", "cache_from"),
            ("cache_to", "cache_to"),
            ("secret", "secrets"),
            ("ssh", "ssh"),
            ("label", "labels"),
            ("annotation", "annotations"),
            ("attest", "attest"),
        )
    }
    plain: dict[str, Any] = {
        name: given[name]
        for name in (
            "load",
            "provenance",
            "sbom",
            "no_attest",
            "reproducible",
            "no_cache",
            "pull",
            "metadata_file",
        )
    }
    plain |= {"split": given["split"], "proved": not given["no_verify"]}
    return {"outputs": tuple(outputs), **lists, **plain}


def _push_code(pushed: PushResult | None) -> int:
    """The exit code of a push whose proof failed."""
    if pushed is None or pushed.verify is None:
        return 1
    return _verify_code(pushed.verify) if pushed.run is None else _run_code(pushed.run)


def _verify_code(report: VerifyReport) -> int:
    """5 if limits are all that was in the way, else 1."""
    failed = {check.name for row in report.platforms for check in row.checks if not check.ok}
    return _LIMIT if failed == {"limit"} else 1


def _run_code(report: RunReport) -> int:
    """5 if limits were all that failed, 124 if time-outs were, else 1."""
    failed = {"limit" if result.limited else result.outcome for result in report.results if not result.ok}
    codes = {"limit": _LIMIT, "timeout": _TIMEOUT}
    return codes.get(failed.pop(), 1) if len(failed) == 1 else 1


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
