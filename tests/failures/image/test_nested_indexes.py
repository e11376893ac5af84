from __future__ import annotations

import json

import pytest

from buildkit_tasks.oci.model import OCI_INDEX, Digest
from tests.failures.hostile_images import FORMS, verify_rejects, write
from tests.support.oci import Json, MemoryImage, add_platform, hello, index_json, make_tar, probe_program
from tests.support.project import Project


def nested(depth: int) -> MemoryImage:
    """An image within so many indexes."""
    memory = MemoryImage()
    tar = make_tar({"main": probe_program("linux/amd64")})
    entry: Json = add_platform(memory, "linux/amd64", [tar], Cmd=["/main"])
    for _ in range(depth):
        entry = memory.put(index_json([entry]), OCI_INDEX)
    return memory.set_root(entry)


@pytest.mark.parametrize("form", FORMS)
def test_indexes_are_followed_three_deep_and_no_farther(form: str, project: Project) -> None:
    project.task("verify-arch", write(nested(3), project.folder, form))
    verify_rejects(project, write(nested(4), project.folder, form), "nested more than 3 deep")


def test_an_index_that_names_itself_is_not_what_its_digest_says(project: Project) -> None:
    memory = hello(["linux/amd64"])
    own = str(Digest.from_bytes(b"no index can hold its own digest"))
    data = json.dumps(index_json([{"mediaType": OCI_INDEX, "digest": own, "size": 1}])).encode()
    data = data.replace(b'"size": 1', b'"size": %d' % (len(data) + 2))
    memory.blobs[own] = data
    memory.set_index([{"mediaType": OCI_INDEX, "digest": own, "size": len(data)}])
    verify_rejects(project, write(memory, project.folder, "oci"), own, "holds other bytes")


def test_two_indexes_that_name_each_other_are_no_better(project: Project) -> None:
    memory = MemoryImage()
    digests = [str(Digest.from_bytes(name)) for name in (b"one", b"two")]
    for own, other in (digests, digests[::-1]):
        memory.blobs[own] = json.dumps(
            index_json([{"mediaType": OCI_INDEX, "digest": other, "size": 183}])
        ).encode()
    size = len(memory.blobs[digests[0]])
    memory.set_index([{"mediaType": OCI_INDEX, "digest": digests[0], "size": size}])
    verify_rejects(project, write(memory, project.folder, "gzip"), "holds other bytes")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["oci", "gzip"])
def test_indexes_that_fan_out_are_stopped(form: str, project: Project) -> None:
    memory = MemoryImage()
    entry: Json = memory.put(index_json([]), OCI_INDEX)
    for _ in range(2):
        entry = memory.put(index_json([entry] * 500), OCI_INDEX)
    verify_rejects(
        project, write(memory.set_root(entry), project.folder, form), "more than 1000 entries", code=5
    )
