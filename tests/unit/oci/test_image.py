from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci import image as image_module
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import EMPTY_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Digest
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports import open_image
from tests.support.oci import (
    LAYER_GZIP,
    Json,
    MemoryImage,
    add_platform,
    descriptor,
    flip,
    hello,
    index_json,
    make_tar,
    probe_program,
    put_manifest,
    write_archive,
    write_layout_dir,
)

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
UNKNOWN = {"os": "unknown", "architecture": "unknown"}


def image_platforms(memory: MemoryImage) -> list[str]:
    return [str(platform) for platform, _ in Image(memory).platform_manifests]


def add_image(memory: MemoryImage, platform: str = "linux/amd64") -> Json:
    return add_platform(memory, platform, [make_tar({"main": probe_program(platform)})], Entrypoint=["/main"])


def test_every_flipped_byte_is_detected() -> None:
    memory = hello(["linux/amd64"])
    digest, data = str(memory.root_descriptor().digest), memory.blobs[str(memory.root_descriptor().digest)]
    for offset in range(len(data)):
        memory.blobs[digest] = flip(data, offset)
        with pytest.raises(MalformedImage, match="holds other bytes"):
            Image(memory).index  # noqa: B018 - reads it


def test_platforms_in_index_order() -> None:
    memory = hello()
    assert image_platforms(memory) == ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    assert len(Image(memory).index.manifests) == 3


def test_attestations_and_artifacts_are_not_platforms() -> None:
    memory = MemoryImage()
    artifact = put_manifest(memory, {}, [])
    empty = {"mediaType": EMPTY_CONFIG, "digest": artifact["digest"], "size": artifact["size"]}
    unmarked = memory.put({"schemaVersion": 2, "config": empty, "layers": []}, OCI_MANIFEST)
    memory.set_index(
        [
            add_image(memory),
            {**artifact, "platform": UNKNOWN},
            {**artifact, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
            {**artifact, "artifactType": "application/x"},
            unmarked,
            {**artifact, "mediaType": "application/vnd.unknown", "platform": UNKNOWN},
        ]
    )
    assert image_platforms(memory) == ["linux/amd64"]


def test_repeated_platform() -> None:
    memory = MemoryImage()
    memory.set_index([add_image(memory), add_image(memory)])
    assert image_platforms(memory) == ["linux/amd64", "linux/amd64"]


def test_platform_of_single_manifest() -> None:
    memory = MemoryImage()
    entry = add_image(memory, "linux/arm/v6")
    del entry["platform"]
    assert image_platforms(memory.set_root(entry)) == ["linux/arm/v6"]


def test_platform_from_config() -> None:
    memory = MemoryImage()
    entry = add_image(memory, "linux/s390x")
    del entry["platform"]
    assert image_platforms(memory.set_index([entry])) == ["linux/s390x"]


def nested_image(depth: int) -> MemoryImage:
    memory = MemoryImage()
    entry = add_image(memory)
    for _ in range(depth):
        entry = memory.put(index_json([entry]), OCI_INDEX)
    return memory.set_root(entry)


def test_index_depth_limit() -> None:
    assert image_platforms(nested_image(3)) == ["linux/amd64"]
    with pytest.raises(MalformedImage, match="nested more than 3 deep"):
        image_platforms(nested_image(4))


def test_index_entry_limit() -> None:
    memory = MemoryImage()
    entry = memory.put(index_json([]), OCI_INDEX)
    for _ in range(2):
        entry = memory.put(index_json([entry] * 500), OCI_INDEX)
    with pytest.raises(LimitExceeded, match=f"more than {LIMITS.manifests} entries"):
        image_platforms(memory.set_root(entry))
    assert len(memory.opened) == 3  # each index once


def test_index_of_most_entries() -> None:
    memory = MemoryImage()
    memory.set_index([add_image(memory)] * LIMITS.manifests)
    assert len(Image(memory).entries) == LIMITS.manifests


def test_unknown_media_types() -> None:
    memory = MemoryImage()
    text = memory.put({}, "text/plain")
    artifact = memory.put({"schemaVersion": 2, "config": text, "layers": []}, OCI_MANIFEST)
    assert Image(memory).config(descriptor(add_image(memory))).entrypoint == ("/main",)
    with pytest.raises(MalformedImage, match="is not an image manifest"):
        Image(memory).manifest(descriptor(text))
    with pytest.raises(MalformedImage, match="is not an image config"):
        Image(memory).config(descriptor(artifact))


def entry_kinds(memory: MemoryImage) -> list[str]:
    return [entry.kind.value for entry in Image(memory).entries]


def add_attestation(memory: MemoryImage, attested: str, *, subject: str | None = None) -> Json:
    """Add an attestation with annotations or, given a subject, one as an OCI artifact."""
    annotations = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": attested,
    }
    if subject is None:
        return {**put_manifest(memory, {}, []), "platform": UNKNOWN, "annotations": annotations}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
        "config": memory.put({}, EMPTY_CONFIG),
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 1},
    }
    return {**memory.put(document, OCI_MANIFEST), "platform": UNKNOWN}


def test_entry_kinds() -> None:
    memory = MemoryImage()
    entry = add_image(memory)
    bare = {key: value for key, value in add_image(memory, "linux/arm64").items() if key != "platform"}
    empty = memory.put(
        {"schemaVersion": 2, "config": memory.put({}, EMPTY_CONFIG), "layers": []}, OCI_MANIFEST
    )
    inner = memory.put(index_json([bare, empty]), OCI_INDEX)
    other = memory.put(b"text", "text/plain")
    memory.set_index([entry, add_attestation(memory, entry["digest"]), inner, other])
    assert entry_kinds(memory) == ["image", "attestation", "index", "image", "artifact", "artifact"]
    assert image_platforms(memory) == ["linux/amd64", "linux/arm64"]


def test_attested_images() -> None:
    memory = MemoryImage()
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    both = {**add_attestation(memory, one, subject=two), "annotations": {"vnd.docker.reference.digest": one}}
    entries = [add_attestation(memory, one), add_attestation(memory, "", subject=two), both]
    memory.set_index(entries)
    assert entry_kinds(memory) == ["attestation"] * 3
    targets = [Image(memory).attested_images(entry.descriptor) for entry in Image(memory).entries]
    assert [[str(digest) for digest in each] for each in targets] == [[one], [two], [one, two]]


def test_attestation_with_invalid_digest() -> None:
    memory = MemoryImage()
    memory.set_index([add_attestation(memory, "sha256:../../x")])
    with pytest.raises(MalformedImage, match="is not a valid digest"):
        Image(memory).attested_images(Image(memory).entries[0].descriptor)


def test_missing_and_order_defaults(tmp_path: Path) -> None:
    memory = hello()
    entry = memory.root_descriptor()
    assert (Image(memory).is_missing(entry), Image(memory).read_order(entry)) == (False, 0)
    with open_image(str(write_archive(memory, tmp_path / "a.tar"))) as source:
        source.root_descriptor()
        assert (source.is_missing(entry), source.read_order(entry) > 0) == (False, True)


def test_foreign_layer_error(tmp_path: Path) -> None:
    memory = MemoryImage()
    tar = make_tar({"main": probe_program("linux/amd64")})
    plain, foreign, elsewhere = (
        {"mediaType": kind, "digest": str(Digest.from_bytes(kind.encode() + more)), "size": len(tar)}
        for kind, more in ((LAYER_GZIP, b""), (FOREIGN, b""), (LAYER_GZIP, b"urls"))
    )
    elsewhere["urls"] = ["https://example.org/layer"]
    memory.set_index([put_manifest(memory, {}, [plain, foreign, elsewhere])])
    with open_image(str(write_layout_dir(memory, tmp_path / "a"))) as source:
        layers = source.manifest(source.index.manifests[0]).layers
        for layer, cause in zip(
            layers, ("is missing", "is a foreign layer", "is a foreign layer"), strict=True
        ):
            with pytest.raises(MalformedImage, match=cause):
                source.open(layer)


def test_wrap() -> None:
    image = Image(hello())
    assert Image.wrap(image) is image
    assert Image.wrap(image.source).source is image.source


def test_documents_are_read_once() -> None:
    memory = hello()
    image = Image(memory)
    for _ in range(2):
        assert [image.config(entry).architecture for _, entry in image.platform_manifests] == [
            "amd64", "arm64", "arm",
        ]  # fmt: skip
        assert read_blob(image, image.root, 1 << 20) == image.read_document(image.root)
    assert Counter(memory.opened) == dict.fromkeys(memory.opened, 1)
    assert len(memory.opened) == 7  # no layers


def test_document_of_other_size_is_rejected() -> None:
    memory = hello(["linux/amd64"])
    image = Image(memory)
    ((_, entry),) = image.platform_manifests
    assert image.manifest(replace(entry, annotations={"a": "b"})) is image.manifest(entry)
    with pytest.raises(MalformedImage, match="are stated"):
        image.manifest(replace(entry, size=entry.size + 1))


def test_document_cache_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = hello()
    monkeypatch.setattr(image_module, "_MAX_CACHED_BYTES", memory.root_descriptor().size)
    image = Image(memory)
    for _ in range(2):
        assert [image.config(entry).os for _, entry in image.platform_manifests] == ["linux"] * 3
    counts = Counter(memory.opened)
    assert counts.pop(str(image.root.digest)) == 1
    assert min(counts.values()) > 1


def test_broken_document_is_not_cached() -> None:
    memory = hello(["linux/amd64"])
    digest = str(memory.root_descriptor().digest)
    data = memory.blobs[digest]
    memory.blobs[digest] = flip(data)
    image = Image(memory)
    with pytest.raises(MalformedImage, match="holds other bytes"):
        image.index  # noqa: B018 - reads it
    memory.blobs[digest] = data
    assert len(image.index.manifests) == 1


def test_reachable() -> None:
    memory = MemoryImage()
    first, second = add_image(memory, "linux/amd64"), add_image(memory, "linux/arm64")
    inner = memory.put(index_json([first]), OCI_INDEX)
    outer = memory.put(index_json([inner, second]), OCI_INDEX)
    memory.set_index([inner, outer, first])
    contents = [str(each.digest) for each in Image(memory).reachable()]
    assert sorted(contents) == sorted(memory.blobs)
    documents = [first["digest"], inner["digest"], outer["digest"], str(memory.root_descriptor().digest)]
    assert [digest for digest in contents if digest in documents] == documents
    assert len(Image(memory).reachable(descriptor(first))) == 3


def test_reachable_of_partial_source() -> None:
    class PartialImage(MemoryImage):
        def is_missing(self, blob: Descriptor) -> bool:
            return blob.media_type == LAYER_GZIP

    memory = PartialImage(**vars(hello(["linux/amd64"])))
    with pytest.raises(MalformedImage, match=r"\(linux/amd64\) is not here"):
        Image(memory).reachable()
