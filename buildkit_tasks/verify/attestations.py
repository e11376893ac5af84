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
    Kind,
    Source,
    attested,
    lacks,
    manifest_of,
    open_verified,
    read_blob,
)
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import EMPTY_CONFIG
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.report.model import Check, PlatformVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest

__all__ = ["Attestations", "read_attestations"]

_IN_TOTO = "application/vnd.in-toto+json"
_PREDICATE = "in-toto.io/predicate-type"
_NAMES = {"slsa.dev/provenance": "provenance", "spdx.dev": "SBOM (SPDX)", "cyclonedx.org": "SBOM (CycloneDX)"}
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Attestations:
    """The check ``attestations`` of each image that has any, and a verdict for each that has no image."""

    of: dict[Digest, tuple[Check, ...]]
    homeless: tuple[PlatformVerdict, ...]


def read_attestations(source: Source, entries: Sequence[IndexEntry]) -> Attestations:
    """Read every attestation of an index: blobs, and what they are about.

    One that is about nothing in this index (a dangling one), about two things, or whose statement
    names another digest than the index does, fails; so does a damaged one.
    """
    images = {entry.descriptor.digest for entry in entries if entry.kind is Kind.IMAGE}
    sound: dict[Digest, list[str]] = defaultdict(list)
    broken: dict[Digest, list[Check]] = defaultdict(list)
    homeless = []
    for entry in entries:
        if entry.kind is not Kind.ATTESTATION or lacks(source, entry.descriptor):
            continue
        target, problem, predicates = _read(source, entry.descriptor, images)
        if target is None:
            name = str(entry.descriptor.platform or "attestation")
            verdict = PlatformVerdict(
                platform=name, digest=str(entry.descriptor.digest), checks=(_failing(problem),)
            )
            homeless.append(verdict)
        elif problem:
            broken[target].append(_failing(problem))
        else:
            sound[target] += predicates
    checks = {image: (*broken[image], *_counted(sound[image])) for image in images}
    return Attestations(checks, tuple(homeless))


def _read(
    source: Source, entry: Descriptor, images: set[Digest]
) -> tuple[Digest | None, str, tuple[str, ...]]:
    """The image that an attestation is about, if it is one of these, what is wrong, what it holds."""
    try:
        targets = attested(source, entry)
    except (MalformedImage, LimitExceeded) as error:
        return None, f"the attestation {entry.digest} cannot be read: {error.message}", ()
    known = [target for target in targets if target in images]
    if len(targets) != 1 or not known:
        about = " and ".join(map(str, targets)) or "no image"
        why = ", of which this index has " + ("one" if known else "none") if targets else ""
        return None, f"the attestation {entry.digest} is about {about}{why}", ()
    try:
        return known[0], "", tuple(_predicates(source, entry, known[0]))
    except (MalformedImage, LimitExceeded) as error:
        return known[0], f"the attestation {entry.digest}: {error.message}", ()


def _predicates(source: Source, entry: Descriptor, image: Digest) -> Iterator[str]:
    manifest = manifest_of(source, entry)
    if manifest.config.media_type != EMPTY_CONFIG:  # whose two bytes are known, and often not stored
        _read_through(source, manifest.config)
    for layer in manifest.layers:
        if layer.media_type == _IN_TOTO and layer.size <= LIMITS.document:
            _check_statement(read_blob(source, layer, LIMITS.document), image)
        else:
            _read_through(source, layer)
        yield _name(layer.annotations.get(_PREDICATE, layer.media_type))


def _read_through(source: Source, blob: Descriptor) -> None:
    if blob.size > LIMITS.layer:
        raise LimitExceeded(f"{blob.digest} claims {blob.size} bytes; at most {LIMITS.layer} are read")
    with open_verified(source, blob) as stream:
        while stream.read(_CHUNK):
            pass


def _check_statement(data: bytes, image: Digest) -> None:
    """An in-toto Statement names what it is about by digest: this image must be among it."""
    subjects = load_object(data, "the in-toto statement").get("subject")
    named = {str(value) for subject in _dicts(subjects) for value in _values(subject.get("digest"))}
    if named and image.hex not in named:
        shown = ", ".join(sorted(named)[:3])
        raise MalformedImage(f"its statement is about {shown[:300]}, the index says {image}")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _name(predicate: str) -> str:
    return next((name for part, name in _NAMES.items() if part in predicate), predicate[:120])


def _counted(predicates: list[str]) -> Iterator[Check]:
    if predicates:
        count = f"{len(predicates)} attestation{'s' if len(predicates) > 1 else ''}"
        yield Check(name="attestations", ok=True, message=f"{count}: {', '.join(sorted(predicates))}")


def _failing(problem: str) -> Check:
    return Check(name="attestations", ok=False, message=problem)
