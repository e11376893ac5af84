"""The order in which the contents of an image are pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES

if TYPE_CHECKING:
    from buildkit_tasks.oci.model import Descriptor
    from buildkit_tasks.oci.source import Source

__all__ = ["push_order"]


def push_order(source: Source) -> tuple[tuple[Descriptor, ...], ...]:
    """Return the blobs, then the manifests, then each index after those that it lists; the root is last.

    A registry accepts a document only after everything that it lists. Blobs are in the order in which the
    source is read fastest, without foreign layers, which are not pushed (OCI image specification,
    "Non-Distributable Layers"). Raise :class:`MalformedImage` if the source has only a part of the image.
    """
    image = Image.wrap(source)
    blobs, manifests, indexes = [], [], []
    for descriptor in image.reachable():
        if descriptor.media_type in INDEX_TYPES:
            indexes.append((descriptor,))
        elif descriptor.media_type in MANIFEST_TYPES:
            manifests.append(descriptor)
        elif not descriptor.is_foreign_layer:
            blobs.append(descriptor)
    return (tuple(sorted(blobs, key=image.read_order)), tuple(manifests), *indexes)
