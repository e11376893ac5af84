from __future__ import annotations

import json

import pytest

from buildkit_tasks.errors import CheckFailed, MalformedImage
from buildkit_tasks.oci.copy.index import Part, merge_parts
from buildkit_tasks.oci.model import OCI_MANIFEST, Digest, parse_index
from buildkit_tasks.platforms import Platform
from tests.support.oci import Json, platform_json

AMD, ARM, V6 = (Platform.parse(name) for name in ("linux/amd64", "linux/arm64", "linux/arm/v6"))


def entry(text: str, platform: str, **more: object) -> Json:
    digest = str(Digest.from_bytes(text.encode()))
    return {
        "mediaType": OCI_MANIFEST,
        "digest": digest,
        "size": 7,
        "platform": platform_json(platform),
        **more,
    }


def part(platform: Platform, *, subject: str | None = None, name: str = "", **annotations: str) -> Part:
    image = entry(f"image {platform}", str(platform))
    annotation = {"vnd.docker.reference.digest": subject if subject is not None else image["digest"]}
    attestation = entry(f"about {platform}", "unknown/unknown", annotations=annotation)
    return Part(
        name=name or f"part-{platform.slug}",
        platform=platform,
        image=image,
        attestations=(attestation,),
        annotations=annotations,
    )


def test_order_of_entries() -> None:
    index = parse_index(merge_parts([part(AMD), part(V6), part(ARM)], [ARM, AMD, V6]))
    assert [entry.platform for entry in index.manifests[:3]] == [ARM, AMD, V6]
    subjects = [entry.annotations["vnd.docker.reference.digest"] for entry in index.manifests[3:]]
    assert subjects == [str(entry.digest) for entry in index.manifests[:3]]


def test_default_order() -> None:
    index = parse_index(merge_parts([part(V6), part(AMD)]))
    assert [entry.platform for entry in index.manifests[:2]] == [V6, AMD]


def test_result_ignores_order_of_parts() -> None:
    parts = [part(AMD, key="value"), part(V6, key="value"), part(ARM, key="value")]
    assert merge_parts(parts, [AMD, ARM, V6]) == merge_parts(parts[::-1], [AMD, ARM, V6])


def test_unknown_fields_are_kept() -> None:
    image = entry("x", "windows/amd64", data="eA==", annotations={"a": "b"})
    image["platform"] |= {"os.version": "10.0.1", "os.features": ["win32k"]}
    windows_part = Part(name="x", platform=Platform.normalize("windows", "amd64"), image=image)
    assert json.loads(merge_parts([windows_part]))["manifests"] == [image]


def test_common_annotations() -> None:
    data = merge_parts([part(AMD, version="1", built="a"), part(ARM, version="1", built="b")])
    assert json.loads(data)["annotations"] == {"version": "1"}
    assert "annotations" not in json.loads(merge_parts([part(AMD, built="a"), part(ARM)]))


def test_repeated_platform() -> None:
    with pytest.raises(CheckFailed, match=r"two parts have this platform: one and two") as excinfo:
        merge_parts([part(AMD, name="one"), part(AMD, name="two")])
    assert (excinfo.value.platform, excinfo.value.exit_code) == (AMD, 1)


def test_missing_and_extra_platforms() -> None:
    with pytest.raises(CheckFailed) as excinfo:
        merge_parts([part(AMD)], [ARM, V6])
    assert excinfo.value.message == (
        "the parts are not the 2 expected platforms: no part is for linux/arm64; "
        "no part is for linux/arm/v6; part-amd64 is for linux/amd64"
    )
    assert excinfo.value.hint


def test_variants_differ() -> None:
    with pytest.raises(CheckFailed, match="no part is for linux/arm/v7"):
        merge_parts([part(V6)], [Platform.parse("linux/arm/v7")])


def test_no_parts() -> None:
    with pytest.raises(CheckFailed, match="no part"):
        merge_parts([], [AMD])


def test_attestation_of_other_image() -> None:
    other = str(Digest.from_bytes(b"other"))
    with pytest.raises(MalformedImage, match=f"is about {other}, not about its image"):
        merge_parts([part(AMD, subject=other)])
