"""Images of one platform each, put together as one index: values in, bytes out.

OCI image specification v1.1, "Image Index". What CI builds on one machine per platform, and pushes by
digest, becomes one image; no byte of the parts changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import CheckFailed, MalformedImage
from buildkit_tasks.oci.image import IndexEntryKind, index_entries, read_config, read_manifest
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import INDEX_TYPES, OCI_INDEX
from buildkit_tasks.oci.source import Source, read_blob
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = [
    "Part",
    "merge_parts",
    "read_part",
]

_REFERENCE_DIGEST_ANNOTATION = "vnd.docker.reference.digest"

IndexEntryJson = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One platform's image: its index entry as JSON, and those of what is said about it.

    ``name`` is how it is called in messages. ``annotations`` are those of the index that it came in.
    """

    name: str
    platform: Platform
    image: IndexEntryJson
    attestations: tuple[IndexEntryJson, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


def merge_parts(parts: Sequence[Part], expected: Sequence[Platform] = ()) -> bytes:
    """The bytes of the index of these parts: images in the order of ``expected``, then attestations.

    Without ``expected`` the order is that of the parts. What all parts' own indexes say of themselves
    (annotations) this one says too. The same parts give the same bytes. Raises :class:`CheckFailed` for
    a platform that is there twice, is missing or is not expected, :class:`MalformedImage` for an
    attestation about something else.
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
        raise CheckFailed("there is no part to be merged", hint="name parts with --part or --parts-file")
    by_platform: dict[Platform, Part] = {}
    for part in parts:
        if part.platform in by_platform:
            names = f"{by_platform[part.platform].name} and {part.name}"
            raise CheckFailed(f"two parts are for this platform: {names}", platform=part.platform)
        by_platform[part.platform] = part
    differences = list(_diff_platforms(by_platform, expected)) if expected else []
    if differences:
        raise CheckFailed(
            f"the parts are not the {len(set(expected))} platforms that are expected: "
            f"{'; '.join(differences)}",
            hint="build what is missing with --split, or say what is expected with --platform",
        )


def _diff_platforms(by_platform: Mapping[Platform, Part], expected: Sequence[Platform]) -> Iterator[str]:
    yield from (
        f"no part is for {platform}" for platform in dict.fromkeys(expected) if platform not in by_platform
    )
    yield from (
        f"{part.name} is for {platform}" for platform, part in by_platform.items() if platform not in expected
    )


def _check_attestations(part: Part) -> None:
    """BuildKit's attestations name the manifest that they are about (its attestation storage document)."""
    for entry in part.attestations:
        subject = str(
            (entry.get("annotations") or {}).get(_REFERENCE_DIGEST_ANNOTATION, part.image["digest"])
        )
        if subject != part.image["digest"]:
            raise MalformedImage(
                f"{part.name}: the attestation {entry['digest']} is about {subject[:160]}, not about "
                "its image",
                platform=part.platform,
            )


def _common_annotations(all_annotations: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What every part says alike, in the order of its keys."""
    first = all_annotations[0]
    return {
        key: first[key]
        for key in sorted(first)
        if all(each.get(key) == first[key] for each in all_annotations)
    }


def read_part(source: Source, name: str) -> Part:
    """The image in a source, a manifest or an index of one platform with what is said about it.

    Both forms of buildx: with attestations it makes an index, without them a manifest alone, whose
    platform its configuration states. Raises :class:`CheckFailed` for more or fewer platforms than one.
    """
    root = source.root_descriptor()
    if root.media_type not in INDEX_TYPES:
        config_platform = read_config(source, read_manifest(source, root)).platform
        entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
        return Part(
            name=name,
            platform=config_platform,
            image={**entry, "platform": _encode_platform(config_platform)},
        )
    entries = index_entries(source)
    if any(entry.kind is IndexEntryKind.INDEX for entry in entries):
        raise MalformedImage(f"{name} is an index of indexes, no image of one platform")
    document = load_object(read_blob(source, root, LIMITS.document_bytes), "the image index")
    raw_entries: list[dict[str, Any]] = document["manifests"]  # index_entries has read them: they are sound
    images = [
        (entry, raw)
        for entry, raw in zip(entries, raw_entries, strict=True)
        if entry.kind is IndexEntryKind.IMAGE
    ]
    if len(images) != 1:
        platforms = ", ".join(str(entry.platform) for entry, _ in images) or "none"
        raise CheckFailed(f"{name} is no image of one platform: it has {platforms}")
    ((image, raw),) = images
    platform = image.platform
    if platform is None:
        raise MalformedImage(f"{name} states no platform")
    if not raw.get("platform"):
        raw = {**raw, "platform": _encode_platform(platform)}
    attestations = tuple(each for entry, each in zip(entries, raw_entries, strict=True) if entry is not image)
    return Part(
        name=name,
        platform=platform,
        image=raw,
        attestations=attestations,
        annotations=document.get("annotations") or {},
    )


def _encode_platform(platform: Platform) -> dict[str, str]:
    """A platform as a descriptor has it."""
    variant = {"variant": platform.variant} if platform.variant else {}
    return {"architecture": platform.architecture, "os": platform.os, **variant}
