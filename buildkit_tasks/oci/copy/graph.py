"""Everything that an image consists of, in the order in which a registry wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import is_missing, read_order
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor, parse_index, parse_manifest
from buildkit_tasks.oci.source import Source, read_blob

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["push_order"]

_MAX_INDEX_DEPTH = 3  # as for reading: an index in an index.json, and one more


def push_order(source: Source) -> tuple[tuple[Descriptor, ...], ...]:
    """Blobs, then manifests, then indexes of them, and so on up to the root, each once.

    Blobs come in the order in which the source is read fastest. Foreign layers (OCI image
    specification, "Non-Distributable Layers") are left out: nobody pushes them. Raises
    :class:`MalformedImage` for a source that has only a part of its image.
    """
    heights: dict[Descriptor, int] = {}
    _measure_height(source, source.root_descriptor(), heights, _MAX_INDEX_DEPTH)
    levels: list[list[Descriptor]] = [[] for _ in range(max(heights.values()) + 1)]
    for each, height in heights.items():
        levels[height].append(each)
    levels[0].sort(key=lambda blob: read_order(source, blob))
    return tuple(map(tuple, levels))


def _measure_height(
    source: Source, descriptor: Descriptor, heights: dict[Descriptor, int], depth: int
) -> int:
    """How many documents lie between this and its lowest blob; notes it for all below."""
    bare = replace(descriptor, platform=None, os_version="", annotations={}, artifact_type="", urls=())
    if bare in heights:
        return heights[bare]
    if len(heights) > LIMITS.manifests * LIMITS.layers:
        raise LimitExceeded("the image consists of too many parts")
    child_heights = [
        _measure_height(source, each, heights, depth - 1)
        for each in _iter_children(source, descriptor, depth)
    ]
    heights[bare] = max(child_heights, default=0) + 1 if _is_document(bare) else 0
    return heights[bare]


def _iter_children(source: Source, descriptor: Descriptor, depth: int) -> Iterator[Descriptor]:
    """What a document names as its parts; a blob has none."""
    if descriptor.media_type in MANIFEST_TYPES:
        manifest = parse_manifest(read_blob(source, descriptor, LIMITS.document_bytes), descriptor.media_type)
        yield manifest.config
        yield from (layer for layer in manifest.layers if not layer.is_foreign_layer)
    elif descriptor.media_type in INDEX_TYPES:
        if depth <= 0:
            raise MalformedImage(f"{descriptor.digest}: indexes are nested more than {_MAX_INDEX_DEPTH} deep")
        index = parse_index(read_blob(source, descriptor, LIMITS.document_bytes), descriptor.media_type)
        if len(index.manifests) > LIMITS.manifests:
            raise LimitExceeded(f"the image index has more than {LIMITS.manifests} entries")
        for entry in index.manifests:
            if is_missing(source, entry):
                platform_note = f" ({entry.platform})" if entry.platform else ""
                raise MalformedImage(
                    f"{entry.digest}{platform_note} is not here: only a part of the image is"
                )
            yield entry


def _is_document(descriptor: Descriptor) -> bool:
    return descriptor.media_type in INDEX_TYPES or descriptor.media_type in MANIFEST_TYPES
