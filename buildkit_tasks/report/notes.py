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
            yield f"image: {report.subject} {report.digest}"
        case RunReport():
            yield f"image: {report.subject}"
            yield from _run_notes(report)
        case MatrixReport():
            yield from _setup_notes(report.setup)
            yield from _build_notes(report.build)
            yield from _push_notes(report.build.pushed if report.build else None)
            yield from _run_notes(report.run)
        case PushResult():
            yield from _push_notes(report)
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
        yield f"image: {', '.join(map(_format_output, result.outputs))} {result.digest}"
        yield f"built in {result.seconds:.1f} seconds, bases: {result.bases}"


def _format_output(output: Output) -> str:
    destination = output.dest or output.ref
    return f"{output.type}:{destination}" if destination else output.type


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


def _run_notes(report: RunReport | None) -> Iterator[str]:
    if report:
        if report.results:
            yield f"run by: {', '.join(list_runners(report))}"
        yield from describe_seconds(report.results)
        yield from describe_cpu_differences(report.results)


def _image_notes(image: ImageReport) -> Iterator[str]:
    yield from _build_notes(image.build)
    yield from _run_notes(image.run)
    if image.tags:
        yield f"tagged: {', '.join(tag.ref for tag in image.tags)}"
