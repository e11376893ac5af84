from __future__ import annotations

import json

import pytest

from buildkit_tasks.oci.limits import Limits
from buildkit_tasks.oci.model import EMPTY_CONFIG, OCI_CONFIG, OCI_MANIFEST, Digest
from buildkit_tasks.report.model import Check, VerifyReport
from buildkit_tasks.verify import attestations, verify
from tests.support.oci import Json, MemoryImage, add_platform, flip, make_tar, probe_program

ARM64 = "linux/arm64"
IN_TOTO = "application/vnd.in-toto+json"
PREDICATE = "in-toto.io/predicate-type"
SLSA, SPDX = "https://slsa.dev/provenance/v1", "https://spdx.dev/Document"


def add_image(memory: MemoryImage) -> Json:
    tar = make_tar({"main": probe_program(ARM64)})
    return add_platform(memory, ARM64, [tar], Entrypoint=["/main"])


def statement(subject: str) -> bytes:
    digest = {"sha256": subject.removeprefix("sha256:")}
    return json.dumps({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": digest}]}).encode()


def put_layers(memory: MemoryImage, subject: str, *predicates: str) -> list[Json]:
    return [
        memory.put(statement(subject) + b" " * number, IN_TOTO, annotations={PREDICATE: predicate})
        for number, predicate in enumerate(predicates)
    ]


def add_annotated(
    memory: MemoryImage, subject: str, *, stated: str | None = None, predicates: tuple[str, ...] = (SLSA,)
) -> Json:
    """Add an attestation with platform unknown/unknown and annotations of the index entry."""
    config = {"os": "unknown", "architecture": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": memory.put(config, OCI_CONFIG),
        "layers": put_layers(memory, stated or subject, *predicates),
    }
    annotations = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject,
    }
    unknown = {"os": "unknown", "architecture": "unknown"}
    return memory.put(manifest, OCI_MANIFEST, platform=unknown, annotations=annotations)


def add_artifact(memory: MemoryImage, subject: Json) -> Json:
    """Add an attestation as an OCI artifact with an empty configuration and a subject."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
        "config": {"mediaType": EMPTY_CONFIG, "digest": str(Digest.from_bytes(b"{}")), "size": 2},
        "layers": put_layers(memory, subject["digest"], SPDX),
        "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
    }
    kind = "application/vnd.docker.attestation.manifest.v1+json"
    return memory.put(manifest, OCI_MANIFEST, artifactType=kind)


def attestation_checks(report: VerifyReport) -> list[tuple[str, Check]]:
    return [
        (row.platform, check)
        for row in report.platforms
        for check in row.checks
        if check.name == "attestations"
    ]


def test_both_formats_are_counted() -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    index = memory.set_index(
        [entry, add_annotated(memory, entry["digest"], predicates=(SLSA, SPDX)), add_artifact(memory, entry)]
    )
    report = verify(index, (), "it")
    assert report.ok
    assert [row.platform for row in report.platforms] == [ARM64]
    platform, check = attestation_checks(report)[0]
    assert (platform, check.message) == (ARM64, "3 attestations: SBOM (SPDX), SBOM (SPDX), provenance")


def test_no_attestations() -> None:
    memory = MemoryImage()
    assert attestation_checks(verify(memory.set_index([add_image(memory)]), (), "it")) == []


@pytest.mark.parametrize("form", ["annotated", "artifact"])
def test_unknown_target(form: str) -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    other = {**entry, "digest": str(Digest.from_bytes(b"another"))}
    dangling = add_annotated(memory, other["digest"]) if form == "annotated" else add_artifact(memory, other)
    report = verify(memory.set_index([entry, dangling]), (), "it")
    assert [row.ok for row in report.platforms] == [True, False]
    _, check = attestation_checks(report)[0]
    assert f"is about {other['digest']}, which is not in this index" in check.message
    assert report.platforms[1].digest == dangling["digest"]


def test_no_target() -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    unattached = {**add_annotated(memory, entry["digest"]), "annotations": {}}
    _, check = attestation_checks(verify(memory.set_index([entry, unattached]), (), "it"))[0]
    assert not check.ok
    assert "it is about no image; it has to be about one image" in check.message


def test_two_targets() -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    other = str(Digest.from_bytes(b"another"))
    both = {**add_artifact(memory, entry), "annotations": {"vnd.docker.reference.digest": other}}
    _, check = attestation_checks(verify(memory.set_index([entry, both]), (), "it"))[0]
    assert not check.ok
    assert f"it is about {other} and {entry['digest']}; it has to be about one image" in check.message


def test_statement_of_other_image() -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    other = str(Digest.from_bytes(b"another"))
    wrong = add_annotated(memory, entry["digest"], stated=other)
    report = verify(memory.set_index([entry, wrong]), (), "it")
    platform, check = attestation_checks(report)[0]
    assert (platform, check.ok) == (ARM64, False)
    assert f"its statement is about {other.removeprefix('sha256:')}" in check.message


@pytest.mark.parametrize("blob", ["manifest", "config", "layer"])
def test_flipped_byte(blob: str) -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    attestation = add_annotated(memory, entry["digest"])
    document = json.loads(memory.blobs[attestation["digest"]])
    digests = {
        "manifest": attestation["digest"],
        "config": document["config"]["digest"],
        "layer": document["layers"][0]["digest"],
    }
    memory.blobs[digests[blob]] = flip(memory.blobs[digests[blob]])
    report = verify(memory.set_index([entry, attestation]), (), "it")
    assert not report.ok
    assert [check.ok for _, check in attestation_checks(report)] == [False]
    assert "holds other bytes" in attestation_checks(report)[0][1].message


def add_text(memory: MemoryImage, subject: str, data: bytes) -> tuple[Json, str]:
    """Add an attestation whose layer is not an in-toto statement; return its entry and the layer's digest."""
    attestation = add_annotated(memory, subject)
    layer = memory.put(data, "text/spdx")
    document = json.loads(memory.blobs[attestation["digest"]]) | {"layers": [layer]}
    return attestation | memory.put(document, OCI_MANIFEST), layer["digest"]


def test_flipped_byte_in_other_layer() -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    attestation, layer = add_text(memory, entry["digest"], b"an SBOM")
    assert verify(memory.set_index([entry, attestation]), (), "it").ok
    memory.blobs[layer] = flip(memory.blobs[layer], 0)
    _, check = attestation_checks(verify(memory, (), "it"))[0]
    assert "holds other bytes" in check.message


def test_size_limit_of_other_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    attestation, layer = add_text(memory, entry["digest"], b"x" * 1001)
    monkeypatch.setattr(attestations, "LIMITS", Limits(layer_bytes=1000))
    _, check = attestation_checks(verify(memory.set_index([entry, attestation]), (), "it"))[0]
    assert f"{layer} claims 1001 bytes; at most 1000 are read" in check.message
