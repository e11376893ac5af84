from __future__ import annotations

import json
import os
import socket
import tarfile
from pathlib import Path

import pytest

from tests.failures.hostile_images import verify_rejects, write_image
from tests.support.oci import (
    MemoryImage,
    hard_link,
    hello,
    layout_files,
    make_tar,
    member,
    platform_json,
    symlink,
)
from tests.support.project import Project

KINDS = ("symlink", "absolute symlink", "dangling symlink", "fifo", "socket", "directory", "device")


def replace_file(path: Path, kind: str) -> None:
    """Replace a file by another kind of file; a symlink leads to the original."""
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    if kind == "symlink":
        path.symlink_to("elsewhere")
    elif kind == "absolute symlink":
        path.symlink_to(elsewhere)
    elif kind == "dangling symlink":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        previous = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is at most 107 bytes long: unix(7)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
        os.chdir(previous)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which has no end


def first_layer(memory: MemoryImage) -> str:
    """Return the digest of the first gzip blob."""
    return next(digest for digest, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))


@pytest.mark.parametrize("kind", KINDS)
def test_layout_layer_is_not_a_file(kind: str, project: Project) -> None:
    memory = hello()
    digest = first_layer(memory)
    name = write_image(memory, project.folder, "oci")
    try:
        replace_file(project.folder / "layout/blobs/sha256" / digest.partition(":")[2], kind)
    except PermissionError:
        pytest.skip("only root can create devices")
    cause = "symbolic link" if "symlink" in kind else "sha256:" if kind == "socket" else "not a regular file"
    assert verify_rejects(project, name, digest, cause) == ["linux/amd64"]


@pytest.mark.parametrize("file", ["index.json", "oci-layout"])
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_layout_index_is_not_a_file(kind: str, file: str, project: Project) -> None:
    name = write_image(hello(), project.folder, "oci")
    replace_file(project.folder / "layout" / file, kind)
    assert verify_rejects(project, name, file) == ["unknown"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "device"])
def test_archive_layer_is_not_a_file(kind: str, project: Project) -> None:
    memory = hello()
    digest = first_layer(memory)
    files = layout_files(memory)
    name = f"blobs/{digest.replace(':', '/')}"
    files["elsewhere"] = files.pop(name)
    replacements = {
        "symlink": symlink(name, "../../elsewhere"), "hard link": hard_link(name, "elsewhere"),
        "fifo": member(name, tarfile.FIFOTYPE), "device": member(name, tarfile.CHRTYPE),
    }  # fmt: skip
    (project.folder / "image.tar").write_bytes(make_tar(files, [replacements[kind]]))
    failed = verify_rejects(project, f"oci-archive:{project.folder}/image.tar", name, "is missing")
    assert failed == ["linux/amd64"]


@pytest.mark.parametrize("target", ["../../../../etc/passwd", "/etc/passwd", "layer.tar", "../0b/layer.tar"])
def test_docker_archive_link_stays_inside(target: str, project: Project) -> None:
    config = json.dumps(
        {**platform_json("linux/amd64"), "rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}
    ).encode()
    image = [{"Config": "c.json", "Layers": ["0a/layer.tar"]}]
    data = make_tar(
        {"manifest.json": json.dumps(image).encode(), "c.json": config},
        [symlink("0a/layer.tar", target), symlink("0b/layer.tar", "../0a/layer.tar")],
    )
    (project.folder / "image.tar").write_bytes(data)
    verify_rejects(
        project, f"docker-archive:{project.folder}/image.tar", f"a link to '{target}'", "not a file in"
    )
