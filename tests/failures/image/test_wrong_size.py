from __future__ import annotations

import json

import pytest

from buildkit_tasks.oci.model import OCI_MANIFEST
from tests.failures.hostile_images import FORMATS, verify_rejects, write_image
from tests.support.oci import (
    LAYER_GZIP,
    MemoryImage,
    hello,
    index_json,
    make_tar,
    platform_json,
    put_manifest,
)
from tests.support.project import Project

AMD64 = platform_json("linux/amd64")


def image_with_size(kind: str, size: object) -> MemoryImage:
    """Return an image of one platform with this size in the descriptor of its layer, config or manifest."""
    memory = MemoryImage()
    layer = memory.put(make_tar({"main": b"x"}), LAYER_GZIP)
    entry = put_manifest(memory, {**AMD64, "rootfs": {"diff_ids": []}}, [{**layer, "size": size}])
    document = json.loads(memory.blobs[entry["digest"]])
    if kind == "config":
        document["layers"], document["config"]["size"] = [], size
        entry = memory.put(document, OCI_MANIFEST)
    if kind == "manifest":
        entry["size"] = size
    return memory.set_index([{**entry, "platform": AMD64}])


@pytest.mark.parametrize(
    ("kind", "size", "cause"),
    [
        ("manifest", 10, "is longer than the 10 bytes"),
        ("manifest", 4_000_000, "4000000 are stated"),
        ("config", 3, "is longer than the 3 bytes"),
        ("layer", -1, "malformed"),
        ("layer", 1 << 63, "malformed"),
        ("layer", 1.5, "malformed"),
        ("manifest", -5, "malformed"),
    ],
)
def test_wrong_size(kind: str, size: object, cause: str, project: Project) -> None:
    verify_rejects(project, write_image(image_with_size(kind, size), project.folder, "oci-archive"), cause)


@pytest.mark.parametrize("file_format", ["oci", "gzip"])
@pytest.mark.parametrize(
    ("size", "cause"), [(1 << 62, f"{1 << 62} are stated"), (1, "is longer than the 1 bytes")]
)
def test_wrong_layer_size_in_valid_image(size: int, cause: str, file_format: str, project: Project) -> None:
    memory = hello(["linux/amd64"])
    index = json.loads(memory.blobs[str(memory.root_descriptor().digest)])
    (entry,) = index["manifests"]
    document = json.loads(memory.blobs[entry["digest"]])
    document["layers"][0]["size"] = size
    memory.set_index([{**memory.put(document, OCI_MANIFEST), "platform": AMD64}])
    assert verify_rejects(project, write_image(memory, project.folder, file_format), cause) == ["linux/amd64"]


@pytest.mark.parametrize(
    ("file_format", "size"), list(zip(FORMATS, [5 << 20, 1 << 62, 5 << 20, (1 << 63) - 1], strict=True))
)
def test_too_large_document_is_not_read(size: int, file_format: str, project: Project) -> None:
    name = write_image(image_with_size("manifest", size), project.folder, file_format)
    verify_rejects(project, name, f"claims {size} bytes; at most {4 << 20} are read", code=5)


def test_wrong_index_size(project: Project) -> None:
    memory = hello()
    data = json.dumps(index_json([{**AMD64}])).encode()
    memory.blobs[str(memory.root_descriptor().digest)] = data
    assert verify_rejects(project, write_image(memory, project.folder, "oci"), "are stated") == ["unknown"]
