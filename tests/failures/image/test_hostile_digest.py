from __future__ import annotations

import json

import pytest

from buildkit_tasks.oci.model import OCI_MANIFEST
from tests.failures.hostile_images import FORMATS, verify_rejects, write_image
from tests.support.oci import MemoryImage, hello, index_json, layout_files, make_tar, platform_json
from tests.support.project import Project

HEX = "0" * 64
HOSTILE = (
    "sha256:../../../../../../etc/passwd",
    f"sha256:{HEX}\n",
    f"sha256:{HEX[:-1]}",
    f"sha256:{'A' * 64}",
    f"sha256:{'٣' * 64}",
    f"../sha256:{HEX}",
    f"sha1:{'0' * 40}",
    f"sha256:{HEX}/../{HEX}",
    "",
)


def image_with_digest(digest: str, where: str) -> MemoryImage:
    """Return an image of one platform with this digest of its manifest, config or layer, or as a diff_id."""
    memory = hello(["linux/amd64"])
    (entry,) = json.loads(memory.blobs[str(memory.root_descriptor().digest)])["manifests"]
    document = json.loads(memory.blobs[entry["digest"]])
    if where == "manifest":
        entry["digest"] = digest
    elif where == "config":
        document["config"]["digest"] = digest
    elif where == "layer":
        document["layers"][0]["digest"] = digest
    else:
        config = json.loads(memory.blobs[document["config"]["digest"]])
        config["rootfs"]["diff_ids"] = [digest]
        document["config"] = memory.put(config, document["config"]["mediaType"])
    if where != "manifest":
        entry = {**memory.put(document, OCI_MANIFEST), "platform": platform_json("linux/amd64")}
    return memory.set_index([entry])


@pytest.mark.parametrize("digest", HOSTILE)
def test_invalid_layer_digest(digest: str, project: Project) -> None:
    verify_rejects(
        project, write_image(image_with_digest(digest, "layer"), project.folder, "oci"), "not a valid digest"
    )


@pytest.mark.parametrize(
    ("where", "file_format"), list(zip(["manifest", "config", "layer", "diff_id"], FORMATS, strict=True))
)
def test_invalid_digest_in_each_document(where: str, file_format: str, project: Project) -> None:
    verify_rejects(
        project,
        write_image(image_with_digest(HOSTILE[0], where), project.folder, file_format),
        "not a valid digest",
        "etc/passwd",
    )


@pytest.mark.parametrize("file_format", ["oci", "oci-archive"])
def test_invalid_digest_in_index_json(file_format: str, project: Project) -> None:
    entry = {"mediaType": OCI_MANIFEST, "digest": HOSTILE[0], "size": 1}
    name = write_image(hello(), project.folder, file_format)
    data = json.dumps(index_json([entry])).encode()
    if file_format == "oci":
        (project.folder / "layout/index.json").write_bytes(data)
    else:
        files = {**layout_files(hello()), "index.json": data}
        (project.folder / "image.tar").write_bytes(make_tar(files))
    verify_rejects(project, name, "not a valid digest")


@pytest.mark.parametrize("where", ["Config", "Layers"])
@pytest.mark.parametrize(
    "path", ["../../../../etc/passwd", "/etc/passwd", "blobs/sha256/../../manifest.json", "x\0y"]
)
def test_docker_archive_path_stays_inside(where: str, path: str, project: Project) -> None:
    config = json.dumps({**platform_json("linux/amd64"), "rootfs": {"diff_ids": [f"sha256:{HEX}"]}}).encode()
    image = {"Config": "c.json", "Layers": ["layer.tar"]} | {where: path if where == "Config" else [path]}
    files = {"manifest.json": json.dumps([image]).encode(), "c.json": config, "layer.tar": b""}
    (project.folder / "image.tar").write_bytes(make_tar(files))
    verify_rejects(project, f"docker-archive:{project.folder}/image.tar", "is missing from")
