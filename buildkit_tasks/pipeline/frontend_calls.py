"""Let the frontends of Dockerfiles answer instead of building them: ``--call`` and ``--check``."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError
from buildkit_tasks.pipeline.multi_image import open_images
from buildkit_tasks.system.command import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.build.execute import FrontendAnswer
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.pipeline.image_job import ImageJob, ImageSelection
    from buildkit_tasks.pipeline.pipeline import Pipeline

__all__ = ["call_frontends", "make_call_document"]

_METHODS = ("check", "outline", "targets")


def call_frontends(
    pipeline: Pipeline, selection: ImageSelection | None, request: BuildRequest | None
) -> Iterator[tuple[str, FrontendAnswer]]:
    """Yield what buildx says for each selected image, by its name, or for the one request, by ""."""
    if request is not None:
        _check_method(request.call)
        yield "", pipeline.call_frontend(request)
    if selection is not None:
        _check_method(selection.options["call"])
        with open_images(pipeline, selection) as images:
            for job in filter(lambda job: job.reported, images.image_jobs):
                _check_linked_contexts(job, selection)
                yield job.name, pipeline.with_settings(job.settings).call_frontend(job.request)


def _check_method(call: str) -> None:
    """Raise :class:`UsageError`, with the nearest one, for a method that no Dockerfile frontend has."""
    method = call.partition(",")[0]
    if method not in _METHODS:
        nearest = [*difflib.get_close_matches(method, _METHODS, n=1, cutoff=0), "check"][0]
        raise UsageError(
            f"--call={method}: a Dockerfile can be asked for {', '.join(_METHODS)}", hint=f"--call={nearest}"
        )


def _check_linked_contexts(job: ImageJob, selection: ImageSelection) -> None:
    """Refuse a target that is built on other targets: they would have to be built."""
    for _, dependency in job.linked_contexts:
        files = " ".join(f"--file={file}" for file in selection.bake_files)
        raise UsageError(
            f"target {job.name} is built on {dependency}, which --call={job.request.call} does not build",
            hint=f"docker buildx bake {files} --call={job.request.call} {job.name}",
        )


def make_call_document(answers: Mapping[str, FrontendAnswer]) -> dict[str, Any]:
    """Return the JSON document of a call; ``result`` is the frontend's own document, or null."""
    results = [
        {
            "image": name,
            "ok": not answer.exit_code,
            "result": _parse_answer(answer.output),
            "error": redact(str(answer.error or "")),
        }
        for name, answer in answers.items()
    ]
    return {"ok": all(each["ok"] for each in results), "results": results}


def _parse_answer(output: str) -> Any:
    """Return the frontend's document. It writes ``null`` for an empty list (a nil slice of Go)."""
    document = json.loads(output or "null")
    if isinstance(document, dict) and "warnings" in document:
        document["warnings"] = document["warnings"] or []
    return document
