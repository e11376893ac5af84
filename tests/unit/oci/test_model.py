from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    EMPTY_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    parse_config,
    parse_index,
    parse_manifest,
)
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.platforms import Platform

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def entry(**more: object) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 7, **more}


def index(*entries: dict[str, Any], **more: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": entries, **more}).encode()


def manifest(layers: int = 1, **more: object) -> bytes:
    layer = entry(mediaType="application/vnd.oci.image.layer.v1.tar")
    config = entry(mediaType=OCI_CONFIG)
    return json.dumps({"schemaVersion": 2, "config": config, "layers": [layer] * layers, **more}).encode()


def test_a_digest_is_an_algorithm_and_hex() -> None:
    digest = Digest(DIGEST)
    assert (digest.algorithm, digest.hex, str(digest)) == ("sha256", HEX, DIGEST)


def test_the_digest_of_bytes_is_their_hash() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Digest.from_bytes(b"") == Digest(f"sha256:{empty}")
    assert Digest.from_bytes(b"", "sha512").algorithm == "sha512"


@pytest.mark.parametrize(
    "text",
    [
        "sha256:../../../etc/passwd",
        f"{DIGEST}\n",
        f" {DIGEST}",
        DIGEST.upper(),
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha512:{HEX}",
        f"sha256={HEX}",
        f"md5:{HEX[:32]}",
        f"sha256:{HEX[:-1]}٣",
        "",
    ],
)
def test_row_37_any_other_text_is_no_digest(text: str) -> None:
    with pytest.raises(MalformedImage, match="is not a valid digest"):
        Digest(text)


def test_an_index_gives_its_entries_with_normalised_platforms() -> None:
    stated = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    found = parse_index(index(entry(platform=stated, annotations={"a": "b"})))
    assert found.manifests[0].platform == Platform("linux", "arm64")
    assert found.manifests[0].annotations == {"a": "b"}
    assert found.manifests[0].size == 7


def test_docker_media_types_are_read_like_those_of_oci() -> None:
    assert parse_index(index(mediaType=DOCKER_LIST), DOCKER_LIST).media_type == DOCKER_LIST
    found = parse_manifest(manifest(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST)
    assert found.media_type == DOCKER_MANIFEST


def test_row_35_a_document_that_is_index_and_manifest_is_refused_from_both_sides() -> None:
    both = json.loads(manifest()) | {"manifests": []}
    for parse in (parse_index, parse_manifest):
        with pytest.raises(MalformedImage, match="an index and a manifest at once"):
            parse(json.dumps(both).encode())


@pytest.mark.parametrize("key", ["fsLayers", "history", "CONFIG"])
def test_row_35_an_index_with_another_kinds_key_is_refused(key: str) -> None:
    with pytest.raises(MalformedImage, match="at once"):
        parse_index(index(**{key: []}))


def test_row_35_a_media_type_other_than_the_descriptors_is_refused() -> None:
    with pytest.raises(MalformedImage, match=r"has mediaType .*list.* its descriptor states .*index"):
        parse_index(index(mediaType=DOCKER_LIST), OCI_INDEX)


def test_a_key_in_other_letters_is_refused_because_go_would_read_it() -> None:
    with pytest.raises(MalformedImage, match="'Layers', which differs from 'layers' only in case"):
        parse_manifest(manifest(Layers=[]))


@pytest.mark.parametrize("size", [-1, 1.5, "7", True, None, 2**63])
def test_row_34_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(MalformedImage):
        parse_index(index(entry(size=size)))


@pytest.mark.parametrize("version", [1, 3, "2"])
def test_another_schema_version_is_refused(version: object) -> None:
    with pytest.raises(MalformedImage, match=r"schemaVersion|schema_version"):
        parse_index(index(schemaVersion=version))


def test_a_manifest_may_have_so_many_layers_and_no_more() -> None:
    assert len(parse_manifest(manifest(LIMITS.layers)).layers) == LIMITS.layers
    with pytest.raises(MalformedImage, match=f"{LIMITS.layers + 1} layers"):
        parse_manifest(manifest(LIMITS.layers + 1))


@pytest.mark.parametrize("missing", ["config", "layers", "schemaVersion"])
def test_a_manifest_without_a_required_key_is_refused(missing: str) -> None:
    document = json.loads(manifest())
    del document[missing]
    with pytest.raises(MalformedImage, match=f"missing required field `{missing}`"):
        parse_manifest(json.dumps(document).encode())


def test_a_config_gives_what_the_image_starts() -> None:
    start = {"Entrypoint": ["/a"], "Cmd": None, "Env": ["A=b"], "WorkingDir": "/w", "User": "1"}
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    document = {"os": "linux", "architecture": "arm", "variant": "v6", "config": start, "rootfs": rootfs}
    found = parse_config(json.dumps(document).encode())
    assert (found.entrypoint, found.cmd, found.env) == (("/a",), (), ("A=b",))
    assert (found.working_dir, found.user, found.diff_ids) == ("/w", "1", (Digest(DIGEST),))
    assert found.platform == Platform("linux", "arm", "v6")


@pytest.mark.parametrize("document", [{}, {"os": "", "architecture": "x", "rootfs": {}}])
def test_a_config_without_a_platform_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedImage, match="the image config is malformed"):
        parse_config(json.dumps(document).encode())


def described(
    platform: Platform | None = None,
    annotations: Mapping[str, str] = MappingProxyType({}),
    artifact_type: str = "",
) -> Descriptor:
    return Descriptor(
        media_type=OCI_MANIFEST,
        digest=Digest(DIGEST),
        size=1,
        platform=platform,
        annotations=annotations,
        artifact_type=artifact_type,
    )


def test_attestations_are_recognised_in_each_of_their_forms() -> None:
    assert described(platform=Platform("unknown", "unknown")).is_attestation
    assert described(annotations={"vnd.docker.reference.type": "attestation-manifest"}).is_attestation
    assert described(artifact_type="application/vnd.docker.attestation.manifest.v1+json").is_attestation


def test_an_artifact_is_recognised_by_its_empty_config() -> None:
    document = json.loads(manifest())
    assert not parse_manifest(json.dumps(document).encode()).is_artifact
    document["config"]["mediaType"] = EMPTY_CONFIG
    assert parse_manifest(json.dumps(document).encode()).is_artifact


def test_the_type_of_an_images_config_makes_no_artifact_as_crane_writes_it() -> None:
    assert not described(artifact_type="application/vnd.docker.container.image.v1+json").is_attestation


def test_an_entry_with_a_real_platform_cannot_hide_as_an_attestation() -> None:
    real = Platform("linux", "arm64")
    assert not described(platform=real).is_attestation
    claims = {"vnd.docker.reference.type": "attestation-manifest"}
    assert not described(platform=real, annotations=claims, artifact_type="x").is_attestation


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"x": {"b": 1, "b": 1}}', "'b' appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": -' + b"9" * 20 + b"}", "20 digits"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64"),
        (b"[" * 1_000_000, "nested more than 64"),
        (b'{"a": "\\ud800"}', "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[]", "not an object"),
        (b"", "Expecting value"),
        (b'{"a": 1} {"a": 2}', "Extra data"),
    ],
)
def test_row_36_json_that_readers_take_differently_is_refused(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        load_object(data, "the document")


def test_brackets_in_strings_are_no_depth() -> None:
    text = json.dumps({"a": "[" * 1000, 'quote\\"': "{" * 1000})
    assert load_object(text.encode(), "the document") == json.loads(text)
