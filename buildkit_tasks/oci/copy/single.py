"""What an image of one platform is made of, as it will stand in an index of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import CheckFailed, MalformedImage
from buildkit_tasks.oci.copy.index import Part
from buildkit_tasks.oci.image import Kind, config_of, index_entries, manifest_of
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from typing import Any

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = ["read_part"]


def read_part(source: Source, name: str) -> Part:
    """The image in a source, a manifest or an index of one platform with what is said about it.

    Both forms of buildx: with attestations it makes an index, without them a manifest alone, whose
    platform its configuration states. Raises :class:`CheckFailed` for more or fewer platforms than one.
    """
    root = source.root()
    if root.media_type not in INDEX_TYPES:
        own = config_of(source, manifest_of(source, root)).platform
        entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
        return Part(name=name, platform=own, image={**entry, "platform": _written(own)})
    entries = index_entries(source)
    if any(entry.kind is Kind.INDEX for entry in entries):
        raise MalformedImage(f"{name} is an index of indexes, no image of one platform")
    document = load_object(read_blob(source, root, LIMITS.document), "the image index")
    raws: list[dict[str, Any]] = document["manifests"]  # index_entries has read them: they are sound
    images = [(entry, raw) for entry, raw in zip(entries, raws, strict=True) if entry.kind is Kind.IMAGE]
    if len(images) != 1:
        held = ", ".join(str(entry.platform) for entry, _ in images) or "none"
        raise CheckFailed(f"{name} is no image of one platform: it has {held}")
    ((image, raw),) = images
    platform = image.platform
    if platform is None:
        raise MalformedImage(f"{name} states no platform")
    if not raw.get("platform"):
        raw = {**raw, "platform": _written(platform)}
    others = tuple(each for entry, each in zip(entries, raws, strict=True) if entry is not image)
    return Part(
        name=name,
        platform=platform,
        image=raw,
        attestations=others,
        annotations=document.get("annotations") or {},
    )


def _written(platform: Platform) -> dict[str, str]:
    """A platform as a descriptor has it."""
    variant = {"variant": platform.variant} if platform.variant else {}
    return {"architecture": platform.architecture, "os": platform.os, **variant}
