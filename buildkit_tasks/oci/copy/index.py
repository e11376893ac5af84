"""Assemble one image index from images of one platform each.

OCI image specification v1.1, "Image Index". A CI matrix builds each platform on its own machine and pushes
it by digest; these parts become one image, without changing a byte of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import CheckFailed, MalformedImage
from buildkit_tasks.oci.image import REFERENCE_DIGEST_ANNOTATION, Image, IndexEntryKind
from buildkit_tasks.oci.model import INDEX_TYPES, OCI_INDEX
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = [
    "Part",
    "merge_parts",
    "read_part",
]

IndexEntryJson = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One platform's image: its index entry as JSON, and the entries of its attestations.

    ``name`` is used in messages. ``annotations`` are those of the index that lists it.
    """

    name: str
    platform: Platform
    image: IndexEntryJson
    attestations: tuple[IndexEntryJson, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


def merge_parts(parts: Sequence[Part], expected: Sequence[Platform] = ()) -> bytes:
    """Return the index of the parts: images in the order of ``expected``, then attestations.

    Without ``expected`` the order is that of the parts. Annotations that the indexes of all parts have in
    common are kept. The result depends on the parts alone, byte for byte. Raise :class:`CheckFailed` for
    a platform that occurs twice, is missing or is not expected, :class:`MalformedImage` for an attestation
    of another image.
    """
    _check_platforms(parts, expected)
    for part in parts:
        _check_attestations(part)
    order = [*expected] or [part.platform for part in parts]
    ordered = sorted(parts, key=lambda part: order.index(part.platform))
    entries = [part.image for part in ordered]
    entries += [attestation for part in ordered for attestation in part.attestations]
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    annotations = _common_annotations([part.annotations for part in parts])
    if annotations:
        document["annotations"] = annotations
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


def _check_platforms(parts: Sequence[Part], expected: Sequence[Platform]) -> None:
    if not parts:
        raise CheckFailed("there are no parts to merge", hint="add --part or --parts-file")
    by_platform: dict[Platform, Part] = {}
    for part in parts:
        if part.platform in by_platform:
            names = f"{by_platform[part.platform].name} and {part.name}"
            raise CheckFailed(f"two parts have this platform: {names}", platform=part.platform)
        by_platform[part.platform] = part
    differences = list(_diff_platforms(by_platform, expected)) if expected else []
    if differences:
        raise CheckFailed(
            f"the parts are not the {len(set(expected))} expected platforms: {'; '.join(differences)}",
            hint="build what is missing with --split, or list the expected platforms with --platform",
        )


def _diff_platforms(by_platform: Mapping[Platform, Part], expected: Sequence[Platform]) -> Iterator[str]:
    yield from (
        f"no part is for {platform}" for platform in dict.fromkeys(expected) if platform not in by_platform
    )
    yield from (
        f"{part.name} is for {platform}" for platform, part in by_platform.items() if platform not in expected
    )


def _check_attestations(part: Part) -> None:
    """Raise :class:`MalformedImage` if BuildKit's annotation names another image than the part's."""
    for entry in part.attestations:
        annotations = entry.get("annotations") or {}
        subject = str(annotations.get(REFERENCE_DIGEST_ANNOTATION, part.image["digest"]))
        if subject != part.image["digest"]:
            raise MalformedImage(
                f"{part.name}: the attestation {entry['digest']} is about {subject[:160]}, not about "
                "its image",
                platform=part.platform,
            )


def _common_annotations(all_annotations: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the annotations that all have, sorted by key."""
    common = set.intersection(*(set(annotations.items()) for annotations in all_annotations))
    return dict(sorted(common))


def read_part(source: Source, name: str) -> Part:
    """Read an image of one platform: a manifest, or an index of it and its attestations.

    buildx writes an index if there are attestations and a manifest otherwise, which has the platform of its
    configuration. Raise :class:`CheckFailed` unless there is exactly one platform.
    """
    image = Image.wrap(source)
    root = image.root
    if root.media_type not in INDEX_TYPES:
        platform = image.config(root).platform
        entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
        return Part(name=name, platform=platform, image={**entry, "platform": _encode_platform(platform)})
    if any(entry.kind is IndexEntryKind.INDEX for entry in image.entries):
        raise MalformedImage(f"{name} is an index of indexes, not an image of one platform")
    if len(image.platform_manifests) != 1:
        platforms = ", ".join(str(platform) for platform, _ in image.platform_manifests) or "none"
        raise CheckFailed(f"{name} is not an image of one platform: it has {platforms}")
    # The entries as they are written: they may have keys that Image does not know.
    document = load_object(image.read_document(root), "the image index")
    raw_entries = list(zip(image.entries, document["manifests"], strict=True))
    ((platform, raw_image),) = ((entry.platform, raw) for entry, raw in raw_entries if entry.platform)
    return Part(
        name=name,
        platform=platform,
        image={**raw_image, "platform": raw_image.get("platform") or _encode_platform(platform)},
        attestations=tuple(raw for entry, raw in raw_entries if not entry.platform),
        annotations=document.get("annotations") or {},
    )


def _encode_platform(platform: Platform) -> dict[str, str]:
    """Return a platform as JSON of a descriptor."""
    variant = {"variant": platform.variant} if platform.variant else {}
    return {"architecture": platform.architecture, "os": platform.os, **variant}
