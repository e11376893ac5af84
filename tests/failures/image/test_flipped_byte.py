from __future__ import annotations

import json

import pytest

from tests.failures.hostile_images import FORMATS, verify_rejects, write_image
from tests.support.oci import MemoryImage, flip, hello
from tests.support.project import Project


def blob_digests(memory: MemoryImage) -> dict[str, str]:
    """Return the digest of the index, and of the first platform's manifest, config and layer."""
    index = str(memory.root_descriptor().digest)
    manifest = str(json.loads(memory.blobs[index])["manifests"][0]["digest"])
    document = json.loads(memory.blobs[manifest])
    config, layer = document["config"]["digest"], document["layers"][0]["digest"]
    return {"index": index, "manifest": manifest, "config": config, "layer": layer}


@pytest.mark.parametrize("file_format", ["oci", "gzip"])
@pytest.mark.parametrize("kind", ["index", "manifest", "config", "layer"])
def test_flipped_byte_names_blob(kind: str, file_format: str, project: Project) -> None:
    memory = hello()
    digest = blob_digests(memory)[kind]
    memory.blobs[digest] = flip(memory.blobs[digest])
    failed = verify_rejects(
        project, write_image(memory, project.folder, file_format), digest, "holds other bytes"
    )
    assert failed == (["unknown"] if kind == "index" else ["linux/amd64"])


def test_unchanged_image_passes(project: Project) -> None:
    for file_format in FORMATS:
        project.task("verify-arch", write_image(hello(), project.folder, file_format))


def test_flipped_byte_in_gzip_archive(project: Project) -> None:
    name = write_image(hello(), project.folder, "gzip")
    path = project.folder / "image.tar.gz"
    path.write_bytes(flip(path.read_bytes(), 700))
    done = project.task("verify-arch", name, expect=1)
    assert "image.tar.gz" in done.stderr
    assert "corrupt" in done.stderr
