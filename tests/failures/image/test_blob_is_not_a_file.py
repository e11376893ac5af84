from __future__ import annotations

import json
import os
import socket
import tarfile
from pathlib import Path

import pytest

from tests.failures.hostile_images import verify_rejects, write
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

KINDS = ("symlink", "absolute symlink", "dangling symlink", "fifo", "socket", "folder", "device")


def replace(path: Path, kind: str) -> None:
    """Put something else where the blob was; a symlink leads to the right bytes."""
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
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may not be long
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends


def layer_of(memory: MemoryImage) -> str:
    return next(digest for digest, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_a_layout_that_is_no_file_is_refused_at_once(kind: str, project: Project) -> None:
    memory = hello()
    digest = layer_of(memory)
    name = write(memory, project.folder, "oci")
    try:
        replace(project.folder / "layout/blobs/sha256" / digest.partition(":")[2], kind)
    except PermissionError:
        pytest.skip("making a device takes root")
    cause = "symbolic link" if "symlink" in kind else "sha256:" if kind == "socket" else "not a regular file"
    assert verify_rejects(project, name, digest, cause) == ["linux/amd64"]


@pytest.mark.parametrize("file", ["index.json", "oci-layout"])
@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_neither_may_the_layouts_own_files_be_anything_else(kind: str, file: str, project: Project) -> None:
    name = write(hello(), project.folder, "oci")
    replace(project.folder / "layout" / file, kind)
    assert verify_rejects(project, name, file) == ["unknown"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "device"])
def test_a_layer_of_an_archive_that_is_no_file_is_not_there(kind: str, project: Project) -> None:
    memory = hello()
    digest = layer_of(memory)
    files = layout_files(memory)
    name = f"blobs/{digest.replace(':', '/')}"
    files["elsewhere"] = files.pop(name)
    other = {
        "symlink": symlink(name, "../../elsewhere"), "hard link": hard_link(name, "elsewhere"),
        "fifo": member(name, tarfile.FIFOTYPE), "device": member(name, tarfile.CHRTYPE),
    }  # fmt: skip
    (project.folder / "image.tar").write_bytes(make_tar(files, [other[kind]]))
    failed = verify_rejects(project, f"oci-archive:{project.folder}/image.tar", name, "is missing")
    assert failed == ["linux/amd64"]


@pytest.mark.parametrize("target", ["../../../../etc/passwd", "/etc/passwd", "layer.tar", "../0b/layer.tar"])
def test_a_saved_layer_that_is_a_link_leads_nowhere_but_into_the_archive(
    target: str, project: Project
) -> None:
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
