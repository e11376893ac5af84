"""Read the parts of a release from ``--part`` and ``--parts-file``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import LimitExceeded, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.oci.reference import Reference

__all__ = ["read_parts"]

_PART_HINT = "build the part with --split --json"
_MAX_PARTS_FILE_BYTES = 64 << 20  # bytes; a report of 50 images of one platform has some 220,000


def read_parts(values: Iterable[str], files: Iterable[str], image: str = "") -> tuple[Reference, ...]:
    """Return the parts named on the command line and in files, without duplicates.

    Both may hold several, separated by commas. A file holds one ``REPOSITORY@sha256:...`` per line (``#``
    starts a comment), or the JSON that ``build-multiarch --json`` printed, also several documents one after
    the other. If these describe several images, ``image`` selects one. Raises :class:`UsageError` for
    anything else, and :class:`LimitExceeded` for a file over 64 MiB.
    """
    from buildkit_tasks.oci.reference import Reference

    texts = [each.strip() for value in values for each in value.split(",") if each.strip()]
    paths = [Path(name) for file in files for name in file.split(",") if name]
    file_texts = select_parts([part for path in paths for part in parts_from_file(path, image)], image)
    names = (text.removeprefix("docker://") for text in (*texts, *file_texts))  # as build-multiarch prints it
    references = tuple(dict.fromkeys(map(Reference.parse, names)))
    if not references:
        raise UsageError(
            "no part is given", hint="name each one by --part REPOSITORY@sha256:..., or use --parts-file"
        )
    return references


def select_parts(parts: Iterable[tuple[str, str]], image: str) -> list[str]:
    """Return the parts of one image. Each pair is an image's name, which may be empty, and a part."""
    parts = list(parts)
    names = list(dict.fromkeys(name for name, _ in parts if name))
    if len(names) > 1 and not image:
        raise UsageError(f"the parts are of several images: {', '.join(names)}", hint="select one by --image")
    if names and image and image not in names:
        raise UsageError(f"no part is of image {image!r}; the parts are of {', '.join(names)}")
    return [part for name, part in parts if part_matches_image(name, image)]


def part_matches_image(part_image: str, image: str) -> bool:
    """Return True unless both names are given and differ."""
    return not part_image or not image or part_image == image


def parts_from_file(path: Path, image: str) -> list[tuple[str, str]]:
    """Return each part with the name of its image, if known; "" as the part of an image not selected."""
    text = _read_text(path)
    if not text.strip():
        raise UsageError(f"{path} is empty", hint=_PART_HINT)
    if text.lstrip().startswith("{"):
        build_reports = [
            each for document in iter_json_documents(path, text) for each in _named_build_reports(document)
        ]
        return [
            (name, _pushed_reference(path, name, report) if part_matches_image(name, image) else "")
            for name, report in build_reports
        ]
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [("", line) for line in lines if line]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PARTS_FILE_BYTES + 1)
        if len(data) > _MAX_PARTS_FILE_BYTES:
            raise LimitExceeded(
                f"{path} is larger than {_MAX_PARTS_FILE_BYTES >> 20} MiB: not a list of parts"
            )
        return data.decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def iter_json_documents(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """Yield JSON objects that follow one another, as ``cat`` concatenates reports."""
    offset, decoder = 0, json.JSONDecoder()
    while remaining := text[offset:].lstrip():
        try:
            document, length = decoder.raw_decode(remaining)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not a report of build-multiarch: {error}") from None
        if not isinstance(document, dict):
            raise UsageError(f"{path} is not a report of build-multiarch: not a JSON object")
        yield document
        offset = len(text) - len(remaining) + length


def _named_build_reports(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the build reports of a document: one without a name, or one for each of several images."""
    rows = document.get("images")
    if not isinstance(rows, list):
        return [("", document)]
    return [(str(row.get("name", "")), _build_report(row)) for row in rows if isinstance(row, dict)]


def _build_report(row: dict[str, Any]) -> dict[str, Any]:
    """Return the build report of one of several images; if it could not be built, one with its error."""
    build = row.get("build")
    return build if isinstance(build, dict) else {"error": row.get("error")}


def _pushed_reference(path: Path, image: str, report: dict[str, Any]) -> str:
    """Return what a build has pushed, as a reference with a digest: its own, or that of the report."""
    outputs = report.get("outputs")
    rows = outputs if isinstance(outputs, list) else []
    refs = [row.get("ref") for row in rows if isinstance(row, dict)]
    digest = report.get("digest") or ""
    pinned_refs = [
        ref if "@" in ref else f"{ref}@{digest}"
        for ref in refs
        if isinstance(ref, str) and ("@" in ref or digest)
    ]
    if not pinned_refs:
        location = f"{path}: {image}" if image else str(path)
        cause = report.get("error")  # of a build that failed
        if isinstance(cause, str) and cause:
            raise UsageError(f"{location} is the report of a failed build: {cause.splitlines()[0]}")
        raise UsageError(f"{location} names no image in a registry", hint=_PART_HINT)
    return pinned_refs[0]  # all of them are the same image
