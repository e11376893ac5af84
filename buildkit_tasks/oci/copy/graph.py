"""Everything that an image consists of, in the order in which a registry wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import lacks, position
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor, parse_index, parse_manifest
from buildkit_tasks.oci.source import Source, read_blob

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["everything"]

_DEPTH = 3  # as for reading: an index in an index.json, and one more
_FOREIGN = (".nondistributable.", ".foreign.")


def everything(source: Source) -> tuple[tuple[Descriptor, ...], ...]:
    """Blobs, then manifests, then indexes of them, and so on up to the root, each once.

    Blobs come in the order in which the source is read fastest. Foreign layers (OCI image
    specification, "Non-Distributable Layers") are left out: nobody pushes them. Raises
    :class:`MalformedImage` for a source that has only a part of its image.
    """
    heights: dict[Descriptor, int] = {}
    _climb(source, source.root(), heights, _DEPTH)
    levels: list[list[Descriptor]] = [[] for _ in range(max(heights.values()) + 1)]
    for each, height in heights.items():
        levels[height].append(each)
    levels[0].sort(key=lambda blob: position(source, blob))
    return tuple(map(tuple, levels))


def _climb(source: Source, stated: Descriptor, heights: dict[Descriptor, int], depth: int) -> int:
    """How many documents lie between this and its lowest blob; notes it for all below."""
    here = replace(stated, platform=None, os_version="", annotations={}, artifact_type="", urls=())
    if here in heights:
        return heights[here]
    if len(heights) > LIMITS.manifests * LIMITS.layers:
        raise LimitExceeded("the image consists of too many parts")
    below = [_climb(source, each, heights, depth - 1) for each in _parts(source, stated, depth)]
    heights[here] = max(below, default=0) + 1 if _is_document(here) else 0
    return heights[here]


def _parts(source: Source, here: Descriptor, depth: int) -> Iterator[Descriptor]:
    """What a document names as its parts; a blob has none."""
    if here.media_type in MANIFEST_TYPES:
        manifest = parse_manifest(read_blob(source, here, LIMITS.document), here.media_type)
        yield manifest.config
        yield from (layer for layer in manifest.layers if not _is_foreign(layer))
    elif here.media_type in INDEX_TYPES:
        if depth <= 0:
            raise MalformedImage(f"{here.digest}: indexes are nested more than {_DEPTH} deep")
        index = parse_index(read_blob(source, here, LIMITS.document), here.media_type)
        if len(index.manifests) > LIMITS.manifests:
            raise LimitExceeded(f"the image index has more than {LIMITS.manifests} entries")
        for entry in index.manifests:
            if lacks(source, entry):
                where = f" ({entry.platform})" if entry.platform else ""
                raise MalformedImage(f"{entry.digest}{where} is not here: only a part of the image is")
            yield entry


def _is_document(here: Descriptor) -> bool:
    return here.media_type in INDEX_TYPES or here.media_type in MANIFEST_TYPES


def _is_foreign(layer: Descriptor) -> bool:
    return any(word in layer.media_type for word in _FOREIGN)
