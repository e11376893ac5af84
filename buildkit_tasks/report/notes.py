"""The notes below the table: what a report says of all its platforms together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.report.model import (
    BuildResult,
    ImageReport,
    ImagesReport,
    MatrixReport,
    NamedTag,
    Output,
    PushResult,
    Report,
    RunReport,
    SetupReport,
    VerifyReport,
)
from buildkit_tasks.report.run_labels import describe_cpu_differences, describe_seconds
from buildkit_tasks.report.steps import list_runners

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["list_notes"]


def list_notes(report: Report) -> Iterator[str]:
    """Yield the notes of a report."""
    match report:
        case SetupReport():
            yield from _setup_notes(report)
        case BuildResult():
            yield from _build_notes(report)
            yield from list_notes(report.pushed) if report.pushed else ()
        case VerifyReport():
            yield _image_note(report.subject, report.digest)
            yield from _verify_notes(report)
        case RunReport():
            yield f"image: {report.subject}"
            yield from _run_notes(report)
        case MatrixReport():
            yield from _setup_notes(report.setup)
            yield from _build_notes(report.build)
            yield from _push_notes(report.build.pushed if report.build else None)
            yield from _verify_notes(report.verify)
            yield from _run_notes(report.run)
        case PushResult():
            yield from _push_notes(report)
            yield from _verify_notes(report.verify)
            yield from _run_notes(report.run)
        case ImagesReport():
            yield from _setup_notes(report.setup)
            for image in report.images:
                yield from (f"{image.name}: {note}" for note in _image_notes(image))


def _setup_notes(report: SetupReport | None) -> Iterator[str]:
    if report:
        engine, builder = report.engine, report.builder
        if engine.endpoint:
            yield f"engine: {engine.kind} {engine.version} at {engine.endpoint}, {engine.store} store"
        else:
            yield "engine: not needed, BuildKit runs on another machine"
        reason = f": {builder.reason}" if builder.reason else ""
        yield f"builder: {builder.name} ({builder.driver}){reason}"


def _build_notes(result: BuildResult | None) -> Iterator[str]:
    if result:
        yield from (_output_note(output, result.digest) for output in result.outputs)
        yield f"built in {result.seconds:.1f} seconds, bases: {result.bases}"


_FILES = {
    "local": "a folder of files, not an image; verify-arch dir:{dest} checks it",
    "tar": "a tar archive of files, not an image",
}


def _output_note(output: Output, digest: str) -> str:
    """Return the name that every task accepts, or say what the output is if it is not an image."""
    if output.image_name:
        return _image_note(output.image_name, digest)
    if output.dest:
        return f"output: {output.dest}, {_FILES[output.type].format(dest=output.dest)}"
    return f"output: {output.ref}, only in the store of the builder"


def _image_note(name: str, digest: str) -> str:
    """Return the name of an image and its digest, unless the name ends with it."""
    return f"image: {name}" if name.endswith(digest) else f"image: {name} {digest}"


def _push_notes(report: PushResult | None) -> Iterator[str]:
    if report:
        yield f"pushed {report.digest} in {report.seconds:.1f} seconds"
        yield from (f"{tag.ref}: {_describe_move(tag)}" for tag in report.tags)
        if not report.tags:
            yield "no tag was set"


def _describe_move(tag: NamedTag) -> str:
    if not tag.moved:
        return "unchanged"
    return f"moved, from {tag.previous}" if tag.previous else "new"


def _verify_notes(report: VerifyReport | None) -> Iterator[str]:
    """Yield what helps against the failures, each once for all platforms that have it."""
    if report:
        checks = (check for verdict in report.platforms for check in verdict.checks)
        yield from dict.fromkeys(f"try: {check.hint}" for check in checks if check.hint and not check.ok)


def _run_notes(report: RunReport | None) -> Iterator[str]:
    if report:
        if report.results:
            yield f"run by: {', '.join(list_runners(report))}"
        yield from describe_seconds(report.results)
        yield from describe_cpu_differences(report.results)


def _image_notes(image: ImageReport) -> Iterator[str]:
    yield from _build_notes(image.build)
    if not image.build and (image.verify or image.run):
        subject = image.verify.subject if image.verify else image.run.subject if image.run else ""
        yield _image_note(subject, image.verify.digest if image.verify else "")
    yield from _verify_notes(image.verify)
    yield from _run_notes(image.run)
    if image.tags:
        yield f"tagged: {', '.join(tag.ref for tag in image.tags)}"
