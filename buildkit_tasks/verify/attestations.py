"""Check attestations: that each is intact and about an image of the same index.

BuildKit's docs/attestations/attestation-storage.md (annotations, or OCI artifacts with a ``subject``) and
the in-toto Statement, whose ``subject`` has digests.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.document_keys import STATEMENT, check_keys
from buildkit_tasks.oci.image import Image, IndexEntry, IndexEntryKind
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import EMPTY_CONFIG
from buildkit_tasks.oci.source import open_verified, read_blob
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.report.model import Check, PlatformVerdict
from buildkit_tasks.report.text import pluralise

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

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
    """The ``attestations`` checks of each image, and a verdict for each attestation without an image."""

    checks_by_digest: dict[Digest, tuple[Check, ...]]
    unattached: tuple[PlatformVerdict, ...]


def read_attestations(image: Image, entries: Sequence[IndexEntry]) -> Attestations:
    """Read every attestation among the entries of an index.

    One that is damaged fails, as does one that is about no image of this index or about two, or whose
    statement has another digest than the index.
    """
    manifests = {entry.descriptor.digest for entry in entries if entry.kind is IndexEntryKind.IMAGE}
    predicates: dict[Digest, list[str]] = defaultdict(list)
    failures: dict[Digest, list[Check]] = defaultdict(list)
    unattached = []
    for descriptor in (each.descriptor for each in entries if each.kind is IndexEntryKind.ATTESTATION):
        if image.is_missing(descriptor):
            continue
        target = None
        try:
            target = _find_target(image, descriptor, manifests)
            predicates[target] += tuple(_read_predicates(image, descriptor, target))
        except (MalformedImage, LimitExceeded) as error:
            message = f"the attestation {descriptor.digest}: {error.message}"
            check = Check(name="attestations", ok=False, message=message)
            if target is not None:
                failures[target].append(check)
            else:
                name, digest = str(descriptor.platform or "attestation"), str(descriptor.digest)
                unattached.append(PlatformVerdict(platform=name, digest=digest, checks=(check,)))
    checks = {digest: (*failures[digest], *_summarise(predicates[digest])) for digest in manifests}
    return Attestations(checks, tuple(unattached))


def _find_target(image: Image, attestation: Descriptor, manifests: Container[Digest]) -> Digest:
    """Return the digest of the one image that the attestation is about."""
    targets = image.attested_images(attestation)
    if len(targets) != 1:
        targets_text = " and ".join(map(str, targets)) or "no image"
        raise MalformedImage(f"it is about {targets_text}; it has to be about one image")
    if targets[0] not in manifests:
        raise MalformedImage(f"it is about {targets[0]}, which is not in this index")
    return targets[0]


def _read_predicates(image: Image, attestation: Descriptor, target: Digest) -> Iterator[str]:
    """Yield a short name of each predicate, after checking its blob."""
    manifest = image.manifest(attestation)
    if manifest.config.media_type != EMPTY_CONFIG:  # its two bytes are fixed and often not stored
        _verify_blob(image, manifest.config)
    for layer in manifest.layers:
        if layer.media_type == _IN_TOTO_TYPE and layer.size <= LIMITS.document_bytes:
            _check_statement(read_blob(image, layer, LIMITS.document_bytes), target)
        else:
            _verify_blob(image, layer)
        yield _describe_predicate(layer.annotations.get(_PREDICATE_TYPE_KEY, layer.media_type))


def _verify_blob(image: Image, descriptor: Descriptor) -> None:
    if descriptor.size > LIMITS.layer_bytes:
        raise LimitExceeded(
            f"{descriptor.digest} claims {descriptor.size} bytes; at most {LIMITS.layer_bytes} are read"
        )
    with open_verified(image, descriptor) as stream:
        while stream.read(_CHUNK_SIZE):
            pass


def _check_statement(data: bytes, target: Digest) -> None:
    """Raise :class:`MalformedImage` if an in-toto Statement has subjects and the image is not one of them."""
    document = load_object(data, "the in-toto statement")
    check_keys(document, STATEMENT, "the in-toto statement")
    subjects = document.get("subject")
    digests = {
        str(digest)
        for subject in (subjects if isinstance(subjects, list) else ())
        for digest in _digest_values(subject)
    }
    if digests and target.hex not in digests:
        digest_text = ", ".join(sorted(digests)[:3])
        raise MalformedImage(f"its statement is about {digest_text[:300]}, the index says {target}")


def _digest_values(subject: Any) -> list[Any]:
    digests = subject.get("digest") if isinstance(subject, dict) else None
    return list(digests.values()) if isinstance(digests, dict) else []


def _describe_predicate(predicate: str) -> str:
    return next((name for marker, name in _PREDICATE_NAMES.items() if marker in predicate), predicate[:120])


def _summarise(predicates: Sequence[str]) -> Iterator[Check]:
    if predicates:
        count_text = pluralise(len(predicates), "attestation", "attestations")
        yield Check(name="attestations", ok=True, message=f"{count_text}: {', '.join(sorted(predicates))}")
