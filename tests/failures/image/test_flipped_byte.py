from __future__ import annotations

import json

import pytest

from tests.failures.hostile_images import FORMS, verify_rejects, write
from tests.support.oci import MemoryImage, flip, hello
from tests.support.project import Project


def blobs(memory: MemoryImage) -> dict[str, str]:
    """The digest of one blob of each kind, those of the first platform."""
    index = str(memory.root_descriptor().digest)
    manifest = str(json.loads(memory.blobs[index])["manifests"][0]["digest"])
    document = json.loads(memory.blobs[manifest])
    config, layer = document["config"]["digest"], document["layers"][0]["digest"]
    return {"index": index, "manifest": manifest, "config": config, "layer": layer}


@pytest.mark.parametrize("form", ["oci", "gzip"])
@pytest.mark.parametrize("kind", ["index", "manifest", "config", "layer"])
def test_one_flipped_byte_is_found_and_blamed_on_its_blob(kind: str, form: str, project: Project) -> None:
    memory = hello()
    digest = blobs(memory)[kind]
    memory.blobs[digest] = flip(memory.blobs[digest])
    failed = verify_rejects(project, write(memory, project.folder, form), digest, "holds other bytes")
    assert failed == (["unknown"] if kind == "index" else ["linux/amd64"])


def test_the_same_image_without_the_fault_is_good(project: Project) -> None:
    for form in FORMS:
        project.task("verify-arch", write(hello(), project.folder, form))


def test_a_flipped_byte_of_the_archives_compression_is_found(project: Project) -> None:
    name = write(hello(), project.folder, "gzip")
    path = project.folder / "image.tar.gz"
    path.write_bytes(flip(path.read_bytes(), 700))
    done = project.task("verify-arch", name, expect=1)
    assert "image.tar.gz" in done.stderr
    assert "corrupt" in done.stderr
