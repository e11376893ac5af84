from __future__ import annotations

import json

import pytest

from buildkit_tasks.oci.model import OCI_INDEX, Digest
from tests.failures.hostile_images import FORMATS, verify_rejects, write_image
from tests.support.oci import Json, MemoryImage, add_platform, hello, index_json, make_tar, probe_program
from tests.support.project import Project


def nest_image(depth: int) -> MemoryImage:
    """Return an image inside ``depth`` indexes."""
    memory = MemoryImage()
    tar = make_tar({"main": probe_program("linux/amd64")})
    entry: Json = add_platform(memory, "linux/amd64", [tar], Cmd=["/main"])
    for _ in range(depth):
        entry = memory.put(index_json([entry]), OCI_INDEX)
    return memory.set_root(entry)


@pytest.mark.parametrize("file_format", FORMATS)
def test_index_depth_limit(file_format: str, project: Project) -> None:
    project.task("verify-arch", write_image(nest_image(3), project.folder, file_format))
    verify_rejects(
        project, write_image(nest_image(4), project.folder, file_format), "nested more than 3 deep"
    )


def test_index_that_refers_to_itself(project: Project) -> None:
    memory = hello(["linux/amd64"])
    own = str(Digest.from_bytes(b"an index cannot contain its own digest"))
    data = json.dumps(index_json([{"mediaType": OCI_INDEX, "digest": own, "size": 1}])).encode()
    data = data.replace(b'"size": 1', b'"size": %d' % (len(data) + 2))
    memory.blobs[own] = data
    memory.set_index([{"mediaType": OCI_INDEX, "digest": own, "size": len(data)}])
    verify_rejects(project, write_image(memory, project.folder, "oci"), own, "holds other bytes")


def test_indexes_that_refer_to_each_other(project: Project) -> None:
    memory = MemoryImage()
    digests = [str(Digest.from_bytes(name)) for name in (b"one", b"two")]
    for own, other in (digests, digests[::-1]):
        memory.blobs[own] = json.dumps(
            index_json([{"mediaType": OCI_INDEX, "digest": other, "size": 183}])
        ).encode()
    size = len(memory.blobs[digests[0]])
    memory.set_index([{"mediaType": OCI_INDEX, "digest": digests[0], "size": size}])
    verify_rejects(project, write_image(memory, project.folder, "gzip"), "holds other bytes")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file_format", ["oci", "gzip"])
def test_index_fan_out_is_limited(file_format: str, project: Project) -> None:
    memory = MemoryImage()
    entry: Json = memory.put(index_json([]), OCI_INDEX)
    for _ in range(2):
        entry = memory.put(index_json([entry] * 500), OCI_INDEX)
    verify_rejects(
        project,
        write_image(memory.set_root(entry), project.folder, file_format),
        "more than 1000 entries",
        code=5,
    )
