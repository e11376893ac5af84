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
from tests.support.growth import assert_linear

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


def test_digest_parts() -> None:
    digest = Digest(DIGEST)
    assert (digest.algorithm, digest.hex, str(digest)) == ("sha256", HEX, DIGEST)


def test_digest_from_bytes() -> None:
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
def test_invalid_digest(text: str) -> None:
    with pytest.raises(MalformedImage, match="is not a valid digest"):
        Digest(text)


def test_index_entries() -> None:
    stated = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    parsed = parse_index(index(entry(platform=stated, annotations={"a": "b"})))
    assert parsed.manifests[0].platform == Platform("linux", "arm64")
    assert parsed.manifests[0].annotations == {"a": "b"}
    assert parsed.manifests[0].size == 7


def test_docker_media_types() -> None:
    assert parse_index(index(mediaType=DOCKER_LIST), DOCKER_LIST).media_type == DOCKER_LIST
    parsed = parse_manifest(manifest(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST)
    assert parsed.media_type == DOCKER_MANIFEST


def test_index_and_manifest_at_once() -> None:
    both = json.loads(manifest()) | {"manifests": []}
    for parse in (parse_index, parse_manifest):
        with pytest.raises(MalformedImage, match="an index and a manifest at once"):
            parse(json.dumps(both).encode())


@pytest.mark.parametrize("key", ["fsLayers", "history", "CONFIG"])
def test_index_with_foreign_key(key: str) -> None:
    with pytest.raises(MalformedImage, match="at once"):
        parse_index(index(**{key: []}))


def test_media_type_mismatch() -> None:
    with pytest.raises(MalformedImage, match=r"has mediaType .*list.* its descriptor states .*index"):
        parse_index(index(mediaType=DOCKER_LIST), OCI_INDEX)


def test_key_in_other_case() -> None:
    with pytest.raises(MalformedImage, match="'Layers', which differs from 'layers' only in case"):
        parse_manifest(manifest(Layers=[]))


@pytest.mark.parametrize("size", [-1, 1.5, "7", True, None, 2**63])
def test_invalid_size(size: object) -> None:
    with pytest.raises(MalformedImage):
        parse_index(index(entry(size=size)))


@pytest.mark.parametrize("version", [1, 3, "2"])
def test_other_schema_version(version: object) -> None:
    with pytest.raises(MalformedImage, match=r"schemaVersion|schema_version"):
        parse_index(index(schemaVersion=version))


def test_manifest_without_layers() -> None:
    assert parse_manifest(manifest(layers=0)).layers == ()
    document = json.loads(manifest()) | {"layers": None}
    assert parse_manifest(json.dumps(document).encode()).layers == ()
    del document["layers"]
    with pytest.raises(MalformedImage, match="missing required field `layers`"):
        parse_manifest(json.dumps(document).encode())


def test_layer_limit() -> None:
    assert len(parse_manifest(manifest(LIMITS.layers)).layers) == LIMITS.layers
    with pytest.raises(MalformedImage, match=f"{LIMITS.layers + 1} layers"):
        parse_manifest(manifest(LIMITS.layers + 1))


@pytest.mark.parametrize("missing", ["config", "layers", "schemaVersion"])
def test_missing_manifest_key(missing: str) -> None:
    document = json.loads(manifest())
    del document[missing]
    with pytest.raises(MalformedImage, match=f"missing required field `{missing}`"):
        parse_manifest(json.dumps(document).encode())


def test_config_fields() -> None:
    execution = {"Entrypoint": ["/a"], "Cmd": None, "Env": ["A=b"], "WorkingDir": "/w", "User": "1"}
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    document = {"os": "linux", "architecture": "arm", "variant": "v6", "config": execution, "rootfs": rootfs}
    config = parse_config(json.dumps(document).encode())
    assert (config.entrypoint, config.cmd, config.env) == (("/a",), (), ("A=b",))
    assert (config.working_dir, config.user, config.diff_ids) == ("/w", "1", (Digest(DIGEST),))
    assert config.platform == Platform("linux", "arm", "v6")


@pytest.mark.parametrize("document", [{}, {"os": "", "architecture": "x", "rootfs": {}}])
def test_config_without_platform(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedImage, match="the image config is malformed"):
        parse_config(json.dumps(document).encode())


def make_descriptor(
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


def test_attestation_forms() -> None:
    assert make_descriptor(platform=Platform("unknown", "unknown")).is_attestation
    assert make_descriptor(annotations={"vnd.docker.reference.type": "attestation-manifest"}).is_attestation
    assert make_descriptor(artifact_type="application/vnd.docker.attestation.manifest.v1+json").is_attestation


def test_artifact_has_empty_config() -> None:
    document = json.loads(manifest())
    assert not parse_manifest(json.dumps(document).encode()).is_artifact
    document["config"]["mediaType"] = EMPTY_CONFIG
    assert parse_manifest(json.dumps(document).encode()).is_artifact


def test_crane_artifact_type() -> None:
    assert not make_descriptor(artifact_type="application/vnd.docker.container.image.v1+json").is_attestation


def test_real_platform_is_no_attestation() -> None:
    real = Platform("linux", "arm64")
    assert not make_descriptor(platform=real).is_attestation
    claims = {"vnd.docker.reference.type": "attestation-manifest"}
    assert not make_descriptor(platform=real, annotations=claims, artifact_type="x").is_attestation


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
def test_ambiguous_json(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        load_object(data, "the document")


def test_brackets_in_strings() -> None:
    text = json.dumps({"a": "[" * 1000, 'quote\\"': "{" * 1000})
    assert load_object(text.encode(), "the document") == json.loads(text)


@pytest.mark.parametrize(
    "piece", [b'\\"', b'"', b'"\\', b"\\", b'\\"x', b'["\\"",', b'{"a":"', b"1,", b"9", b" "]
)
@pytest.mark.parametrize("start", [b"", b'{"a": "'])
def test_malformed_json_takes_linear_time(start: bytes, piece: bytes) -> None:
    def load(data: bytes) -> None:
        with pytest.raises(MalformedImage):
            load_object(data, "the document")

    assert_linear(
        load, lambda size: start + piece * (size // len(piece)) + b"\x00", LIMITS.document_bytes // 4
    )
