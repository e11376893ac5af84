"""Read the parts of a release from `--part` and `--parts-file`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import LimitExceeded, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.oci.reference import Reference

__all__ = [
    "read_parts",
]


_MAX_PARTS_FILE_BYTES = 64 << 20  # bytes; a report of 50 images of one platform has some 220,000


def read_parts(values: Iterable[str], files: Iterable[str], image: str = "") -> tuple[Reference, ...]:
    """The parts that are named on the command line, several with commas, and in files.

    A file holds one ``REPOSITORY@sha256:...`` a line (``#`` begins a remark), or what
    ``build-multiarch --json`` printed, be it several such documents one after the other. Where those
    are of several images, ``image`` says of which. Raises :class:`UsageError` for anything else.
    """
    from buildkit_tasks.oci.reference import Reference

    texts = [each.strip() for value in values for each in value.split(",") if each.strip()]
    paths = [Path(name) for file in files for name in file.split(",") if name]
    file_texts = select_parts([part for path in paths for part in parts_from_file(path, image)], image)
    references = tuple(dict.fromkeys(Reference.parse(text) for text in (*texts, *file_texts)))
    if not references:
        raise UsageError("no part is named", hint="name each with --part REPO@sha256:..., or --parts-file")
    return references


def select_parts(parts: Iterable[tuple[str, str]], image: str) -> list[str]:
    """The parts of one image; of those that say of which image they are no two may differ."""
    parts = list(parts)
    names = list(dict.fromkeys(name for name, _ in parts if name))
    if len(names) > 1 and not image:
        raise UsageError(f"the parts are of several images: {', '.join(names)}", hint="--image says which")
    if names and image and image not in names:
        raise UsageError(f"no part is of {image!r}: they are of {', '.join(names)}")
    return [part for name, part in parts if part_matches_image(name, image)]


def part_matches_image(part_image: str, image: str) -> bool:
    """Whether a part may be of the image that is meant: it is, or says of none, or none is meant."""
    return not part_image or not image or part_image == image


def parts_from_file(path: Path, image: str) -> list[tuple[str, str]]:
    """Each part with the name of its image, or without any. Of other images than the one named: no part."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PARTS_FILE_BYTES + 1)
        if len(data) > _MAX_PARTS_FILE_BYTES:
            raise LimitExceeded(f"{path} is larger than {_MAX_PARTS_FILE_BYTES >> 20} MiB: it holds no parts")
        text = data.decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise UsageError(f"{path} is no text") from None
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


def iter_json_documents(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """JSON documents, one after the other, as `cat` puts them together."""
    offset, decoder = 0, json.JSONDecoder()
    while remaining := text[offset:].lstrip():
        try:
            document, length = decoder.raw_decode(remaining)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is no report of build-multiarch: {error}") from None
        if not isinstance(document, dict):
            raise UsageError(f"{path} is no report of build-multiarch: it holds no object")
        yield document
        offset = len(text) - len(remaining) + length


def _named_build_reports(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A build's report, or those of several images with their names."""
    rows = document.get("images")
    if not isinstance(rows, list):
        return [("", document)]
    named_builds = ((str(row.get("name", "")), row.get("build")) for row in rows if isinstance(row, dict))
    return [(name, build if isinstance(build, dict) else {}) for name, build in named_builds]


def _pushed_reference(path: Path, image: str, report: dict[str, Any]) -> str:
    """What a build's report says that it pushed: a reference with its digest, or the report's."""
    outputs = report.get("outputs")
    refs = (
        [each.get("ref") for each in outputs if isinstance(each, dict)] if isinstance(outputs, list) else []
    )
    digest = report.get("digest") or ""
    pinned_refs = [
        ref if "@" in ref else f"{ref}@{digest}"
        for ref in refs
        if isinstance(ref, str) and ("@" in ref or digest)
    ]
    if not pinned_refs:
        location = f"{path}: {image}" if image else str(path)
        raise UsageError(
            f"{location} names no image in a registry", hint="build the part with --split --json"
        )
    return pinned_refs[0]  # one image, however many names it has
