from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import EMPTY_CONFIG, OCI_INDEX, OCI_MANIFEST
from buildkit_tasks.oci.source import (
    config_of,
    index_of,
    manifest_of,
    open_image,
    open_verified,
    platform_manifests,
    read_blob,
)
from tests.images import (
    Json,
    Memory,
    add_platform,
    descriptor,
    flip,
    hello,
    index_json,
    make_tar,
    probe,
    put_manifest,
    write_archive,
    write_folder,
)

UNKNOWN = {"os": "unknown", "architecture": "unknown"}


def platforms(memory: Memory) -> list[str]:
    return [str(platform) for platform, _ in platform_manifests(memory)]


def image(memory: Memory, platform: str = "linux/amd64") -> Json:
    return add_platform(memory, platform, [make_tar({"main": probe(platform)})], Entrypoint=["/main"])


def test_a_blob_is_read_whole_when_size_and_digest_hold() -> None:
    memory = Memory()
    for data in (b"", b"x", os.urandom(1 << 20)):
        assert read_blob(memory, descriptor(memory.put(data, "x/y")), 1 << 20) == data


@pytest.mark.parametrize(
    ("stored", "cause"), [(b"datA", "holds other bytes"), (b"dat", "has 3 bytes"), (b"data+", "longer than")]
)
def test_rows_33_and_34_a_blob_with_other_bytes_is_refused(stored: bytes, cause: str) -> None:
    memory = Memory()
    entry = memory.put(b"data", "x/y")
    memory.blobs[entry["digest"]] = stored
    with pytest.raises(MalformedImage, match=rf"{entry['digest']}.*{cause}"):
        read_blob(memory, descriptor(entry), 100)


def test_row_33_every_single_flipped_byte_is_found_before_the_document_is_parsed() -> None:
    memory = hello(["linux/amd64"])
    digest, data = str(memory.root().digest), memory.blobs[str(memory.root().digest)]
    for at in range(len(data)):
        memory.blobs[digest] = flip(data, at)
        with pytest.raises(MalformedImage, match="holds other bytes"):
            index_of(memory)


def test_a_blob_that_claims_too_much_is_not_even_opened() -> None:
    memory = Memory()
    entry = memory.put(b"data", "x/y")
    with pytest.raises(LimitExceeded, match="claims 4 bytes; at most 3"):
        read_blob(memory, descriptor(entry), 3)
    assert memory.opened == []


def test_a_stream_is_checked_at_its_end() -> None:
    memory = Memory()
    entry = memory.put(bytes(1 << 20), "x/y")
    memory.blobs[entry["digest"]] = flip(bytes(1 << 20))
    stream = open_verified(memory, descriptor(entry))
    assert stream.read(1 << 19) == bytes(1 << 19)
    with pytest.raises(MalformedImage, match="holds other bytes"):
        stream.read()


def test_an_index_gives_its_platforms_in_order() -> None:
    memory = hello()
    assert platforms(memory) == ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    assert len(index_of(memory).manifests) == 3


def test_attestations_and_artifacts_are_no_platforms() -> None:
    memory = Memory()
    artifact = put_manifest(memory, {}, [])
    empty = {"mediaType": EMPTY_CONFIG, "digest": artifact["digest"], "size": artifact["size"]}
    odd = memory.put({"schemaVersion": 2, "config": empty, "layers": []}, OCI_MANIFEST)
    memory.index(
        [
            image(memory),
            {**artifact, "platform": UNKNOWN},
            {**artifact, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
            {**artifact, "artifactType": "application/x"},
            odd,
            {**artifact, "mediaType": "application/vnd.unheard.of", "platform": UNKNOWN},
        ]
    )
    assert platforms(memory) == ["linux/amd64"]


def test_a_platform_that_is_there_twice_is_there_twice() -> None:
    memory = Memory()
    memory.index([image(memory), image(memory)])
    assert platforms(memory) == ["linux/amd64", "linux/amd64"]


def test_a_single_manifest_has_the_platform_of_its_config() -> None:
    memory = Memory()
    entry = image(memory, "linux/arm/v6")
    del entry["platform"]
    assert platforms(memory.point(entry)) == ["linux/arm/v6"]


def test_an_entry_without_a_platform_has_that_of_its_config() -> None:
    memory = Memory()
    entry = image(memory, "linux/s390x")
    del entry["platform"]
    assert platforms(memory.index([entry])) == ["linux/s390x"]


def nested(depth: int) -> Memory:
    memory = Memory()
    entry = image(memory)
    for _ in range(depth):
        entry = memory.put(index_json([entry]), OCI_INDEX)
    return memory.point(entry)


def test_row_39_nested_indexes_are_followed_so_far_and_no_farther() -> None:
    assert platforms(nested(3)) == ["linux/amd64"]
    with pytest.raises(MalformedImage, match="nested more than 3 deep"):
        platforms(nested(4))


def test_row_39_indexes_that_fan_out_are_stopped() -> None:
    memory = Memory()
    entry = memory.put(index_json([]), OCI_INDEX)
    for _ in range(2):
        entry = memory.put(index_json([entry] * 500), OCI_INDEX)
    with pytest.raises(LimitExceeded, match=f"more than {LIMITS.manifests} entries"):
        platforms(memory.point(entry))
    assert len(memory.opened) < 2 * LIMITS.manifests


def test_what_is_no_manifest_or_config_is_refused_by_name() -> None:
    memory = Memory()
    with pytest.raises(MalformedImage, match="no image manifest"):
        manifest_of(memory, descriptor(memory.put({}, "text/plain")))
    entry = image(memory)
    manifest = manifest_of(memory, descriptor(entry))
    assert config_of(memory, manifest).entrypoint == ("/main",)
    document = {"schemaVersion": 2, "config": memory.put({}, "text/plain"), "layers": []}
    other = manifest_of(memory, descriptor(memory.put(document, OCI_MANIFEST)))
    with pytest.raises(MalformedImage, match="no image config"):
        config_of(memory, other)


def test_images_open_by_transport_and_by_looking(tmp_path: Path) -> None:
    memory = hello()
    folder = write_folder(memory, tmp_path / "layout")
    file = write_archive(memory, tmp_path / "image.tar")
    for name in (f"oci:{folder}", f"oci-archive:{file}", str(folder), str(file)):
        with open_image(name) as source:
            assert source.root().digest == memory.root().digest
            assert len(platform_manifests(source)) == 3


def test_a_name_after_the_path_chooses_and_a_colon_in_the_path_is_allowed(tmp_path: Path) -> None:
    named = {"org.opencontainers.image.ref.name": "v1"}
    folder = write_folder(hello(), tmp_path / "with:colon", **named)
    for name in (f"oci:{folder}", f"oci:{folder}:v1"):
        with open_image(name) as source:
            assert len(platform_manifests(source)) == 3
    with pytest.raises(UsageError, match="no image named 'v2'"), open_image(f"oci:{folder}:v2") as source:
        source.root()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("docker://alpine:3", "a registry"),
        ("docker-daemon:alpine:3", "a Docker engine"),
        ("docker-archive:x.tar", "docker save"),
        ("dir:out", "local output"),
        ("alpine:latest", "a registry"),
        ("localhost:5000/hello:v1", "a registry"),
    ],
)
def test_an_image_elsewhere_is_refused_with_what_to_type_instead(name: str, where: str) -> None:
    with pytest.raises(UsageError, match=where) as caught, open_image(name):
        pass
    assert "type=oci,dest=" in str(caught.value.hint)


@pytest.mark.parametrize("form", ["oci:{}", "oci-archive:{}", "{}"])
def test_a_missing_path_is_named(form: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.tar"
    with pytest.raises(UsageError, match=rf"{missing} does not exist"), open_image(form.format(missing)):
        pass


@pytest.mark.parametrize("name", ["", "oci:", "oci-archive:"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"no image is named|has no path"), open_image(name):
        pass


def test_the_wrong_transport_is_refused_with_the_right_one(tmp_path: Path) -> None:
    file = write_archive(hello(), tmp_path / "image.tar")
    for name, right in (
        (f"oci-archive:{tmp_path}", f"oci:{tmp_path}"),
        (f"oci:{file}", f"oci-archive:{file}"),
    ):
        with pytest.raises(UsageError) as caught, open_image(name):
            pass
        assert right in str(caught.value.hint)
