"""The Invoke tasks. A body is: the line, one call of a service, a report, an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildkit_tasks.edge import Edge, collection, job
from buildkit_tasks.options import (
    BUILD,
    CACHE_STATE,
    ENVIRONMENT,
    HOSTS,
    IMAGE,
    PLATFORM,
    RECREATE,
    REPORT,
    RUN,
    SETUP,
    VERIFY,
)

if TYPE_CHECKING:
    from buildkit_tasks.request import BuildRequest
    from buildkit_tasks.results import RunReport, VerifyReport

__all__ = [
    "arch_matrix",
    "build_multiarch",
    "doctor",
    "ns",
    "remove_builder",
    "run_emulated",
    "setup_builder",
    "stop_engine",
    "verify_arch",
]

_ENVIRONMENT, _LIMIT, _TIMEOUT = 3, 5, 124


@job(*SETUP, RECREATE, REPORT)
def setup_builder(edge: Edge) -> None:
    """Make engine, emulators and builder ready, and prove it by running a program for each platform."""
    edge.show(edge.line.setup(recreate=edge.options["recreate"]), code=_ENVIRONMENT)


@job(*BUILD, PLATFORM, *ENVIRONMENT, REPORT)
def build_multiarch(edge: Edge) -> None:
    """Build one image for many platforms; with no output named, as an OCI archive in dist/."""
    edge.show(edge.line.build(_request(edge)))


@job(IMAGE, PLATFORM, *VERIFY, *HOSTS, REPORT)
def verify_arch(edge: Edge) -> None:
    """Prove that every platform in an image is what it says, or that it would start somewhere."""
    from buildkit_tasks.images import Images  # noqa: PLC0415 - nothing is imported for a listing
    from buildkit_tasks.platforms import parse_platforms  # noqa: PLC0415
    from buildkit_tasks.verify.fit import hosts_of  # noqa: PLC0415

    settings, options = edge.settings, edge.options
    hosts = hosts_of(options["for_"], options["for_nodes"])
    named = settings.given("platforms") and not hosts
    expected = parse_platforms(settings.platforms) if named else ()
    report = Images(settings=settings, run=edge.run).verify(options["image"], expected, hosts)
    edge.show(report, code=_verify_code(report), always=True)


@job(IMAGE, PLATFORM, *RUN, *ENVIRONMENT, REPORT)
def run_emulated(edge: Edge) -> None:
    """Run every platform's image, under QEMU where need be, and check what it prints."""
    from buildkit_tasks.images import Images  # noqa: PLC0415 - nothing is imported for a listing
    from buildkit_tasks.platforms import parse_platforms  # noqa: PLC0415
    from buildkit_tasks.runs import Runs  # noqa: PLC0415

    settings, images = edge.settings, Images(settings=edge.settings, run=edge.run)
    runs = Runs(settings=settings, run=edge.run, tell=edge.tell, images=images, line=lambda: edge.line)
    wanted = parse_platforms(settings.platforms) if settings.given("platforms") else ()
    with edge.watching() as watch:
        report = runs.emulate(edge.options["image"], wanted, watch)
    edge.show(report, code=_run_code(report))


@job(*SETUP, *(option for option in BUILD if option.name != "builder"), *VERIFY, *RUN, REPORT)
def arch_matrix(edge: Edge) -> None:
    """Set up, build, verify and run for every platform: one row for each."""
    with edge.watching() as watch:
        report, error = edge.line.matrix(_request(edge), watch)
    code = 1 if report.run is None else _run_code(report.run)
    edge.show(report, code=error.exit_code if error else code)
    if error:
        edge.tell(f"error: {error}")


@job(PLATFORM, *ENVIRONMENT)
def doctor(edge: Edge) -> None:
    """Say what is there, what is missing, and the one next command. Changes nothing."""
    from buildkit_tasks.doctor import examine  # noqa: PLC0415 - nothing is imported for a listing

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
    from buildkit_tasks.engine.private import stop_private_engine  # noqa: PLC0415

    line = edge.line
    stopped = stop_private_engine(line.settings, line.run, line.tell, keep_state=edge.options["keep_state"])
    done = "it would be stopped" if edge.dry_run else "stopped"
    edge.say({"ok": True, "stopped": stopped}, done if stopped else "no private engine was running")


def _request(edge: Edge) -> BuildRequest:
    """The build request: options that are no settings, joined with those that are."""
    from buildkit_tasks.outputs import OutputSpec  # noqa: PLC0415

    given = edge.options
    outputs = [OutputSpec.parse(text) for text in given["output"]]
    if given["push"]:
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
    plain = {
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
    return edge.line.request(outputs=tuple(outputs), **lists, **plain)


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
    doctor,
    remove_builder,
    stop_engine,
)
