"""Attestations: what else an index carries, and whether it is about an image of this index.

BuildKit's docs/attestations/attestation-storage.md (both of its forms), OCI image specification,
"Image Manifest", ``subject``, and the in-toto Statement, whose ``subject`` names digests.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import (
    IndexEntry,
    IndexEntryKind,
    Source,
    attested_images,
    is_missing,
    open_verified,
    read_blob,
    read_manifest,
)
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import EMPTY_CONFIG
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.report.model import Check, PlatformVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest

__all__ = ["Attestations", "read_attestations"]

_IN_TOTO_TYPE = "application/vnd.in-toto+json"
_PREDICATE_TYPE_KEY = "in-toto.io/predicate-type"
_PREDICATE_NAMES = {
    "slsa.dev/provenance": "provenance",
    "spdx.dev": "SBOM (SPDX)",
    "cyclonedx.org": "SBOM (CycloneDX)",
}
_CHUNK_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Attestations:
    """The check ``attestations`` of each image that has any, and a verdict for each that has no image."""

    checks_by_digest: dict[Digest, tuple[Check, ...]]
    unattached: tuple[PlatformVerdict, ...]


def read_attestations(source: Source, entries: Sequence[IndexEntry]) -> Attestations:
    """Read every attestation of an index: blobs, and what they are about.

    One that is about nothing in this index (a dangling one), about two things, or whose statement
    names another digest than the index does, fails; so does a damaged one.
    """
    images = {entry.descriptor.digest for entry in entries if entry.kind is IndexEntryKind.IMAGE}
    predicates_by_image: dict[Digest, list[str]] = defaultdict(list)
    failures_by_image: dict[Digest, list[Check]] = defaultdict(list)
    unattached = []
    for entry in entries:
        if entry.kind is not IndexEntryKind.ATTESTATION or is_missing(source, entry.descriptor):
            continue
        target, problem, predicates = _read_attestation(source, entry.descriptor, images)
        if target is None:
            name = str(entry.descriptor.platform or "attestation")
            verdict = PlatformVerdict(
                platform=name, digest=str(entry.descriptor.digest), checks=(_failed_check(problem),)
            )
            unattached.append(verdict)
        elif problem:
            failures_by_image[target].append(_failed_check(problem))
        else:
            predicates_by_image[target] += predicates
    checks_by_digest = {
        image: (*failures_by_image[image], *_summary_check(predicates_by_image[image])) for image in images
    }
    return Attestations(checks_by_digest, tuple(unattached))


def _read_attestation(
    source: Source, descriptor: Descriptor, images: set[Digest]
) -> tuple[Digest | None, str, tuple[str, ...]]:
    """The image that an attestation is about, if it is one of these, what is wrong, what it holds."""
    try:
        targets = attested_images(source, descriptor)
    except (MalformedImage, LimitExceeded) as error:
        return None, f"the attestation {descriptor.digest} cannot be read: {error.message}", ()
    matching = [target for target in targets if target in images]
    if len(targets) != 1 or not matching:
        subject_text = " and ".join(map(str, targets)) or "no image"
        reason = ", of which this index has " + ("one" if matching else "none") if targets else ""
        return None, f"the attestation {descriptor.digest} is about {subject_text}{reason}", ()
    try:
        return matching[0], "", tuple(_read_predicates(source, descriptor, matching[0]))
    except (MalformedImage, LimitExceeded) as error:
        return matching[0], f"the attestation {descriptor.digest}: {error.message}", ()


def _read_predicates(source: Source, descriptor: Descriptor, image: Digest) -> Iterator[str]:
    manifest = read_manifest(source, descriptor)
    if manifest.config.media_type != EMPTY_CONFIG:  # whose two bytes are known, and often not stored
        _verify_blob(source, manifest.config)
    for layer in manifest.layers:
        if layer.media_type == _IN_TOTO_TYPE and layer.size <= LIMITS.document_bytes:
            _check_statement(read_blob(source, layer, LIMITS.document_bytes), image)
        else:
            _verify_blob(source, layer)
        yield _describe_predicate(layer.annotations.get(_PREDICATE_TYPE_KEY, layer.media_type))


def _verify_blob(source: Source, descriptor: Descriptor) -> None:
    if descriptor.size > LIMITS.layer_bytes:
        raise LimitExceeded(
            f"{descriptor.digest} claims {descriptor.size} bytes; at most {LIMITS.layer_bytes} are read"
        )
    with open_verified(source, descriptor) as stream:
        while stream.read(_CHUNK_SIZE):
            pass


def _check_statement(data: bytes, image: Digest) -> None:
    """An in-toto Statement names what it is about by digest: this image must be among it."""
    subject_entries = load_object(data, "the in-toto statement").get("subject")
    subject_digests = {
        str(value)
        for subject in _only_dicts(subject_entries)
        for value in _dict_values(subject.get("digest"))
    }
    if subject_digests and image.hex not in subject_digests:
        digest_text = ", ".join(sorted(subject_digests)[:3])
        raise MalformedImage(f"its statement is about {digest_text[:300]}, the index says {image}")


def _only_dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _dict_values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _describe_predicate(predicate: str) -> str:
    return next((name for marker, name in _PREDICATE_NAMES.items() if marker in predicate), predicate[:120])


def _summary_check(predicates: list[str]) -> Iterator[Check]:
    if predicates:
        count_text = f"{len(predicates)} attestation{'s' if len(predicates) > 1 else ''}"
        yield Check(name="attestations", ok=True, message=f"{count_text}: {', '.join(sorted(predicates))}")


def _failed_check(problem: str) -> Check:
    return Check(name="attestations", ok=False, message=problem)
