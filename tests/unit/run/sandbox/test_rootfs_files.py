from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.oci.layers.entrypoint import find_command
from buildkit_tasks.run.sandbox.rootfs_files import RootfsFiles
from tests.support.oci import probe_program


@pytest.fixture
def rootfs_dir(tmp_path: Path) -> Path:
    (tmp_path / "root/bin").mkdir(parents=True)
    return tmp_path / "root"


def test_symlinks_resolve_in_root(rootfs_dir: Path) -> None:
    (rootfs_dir / "bin/busybox").write_bytes(probe_program("linux/arm64"))
    (rootfs_dir / "bin/busybox").chmod(0o755)
    (rootfs_dir / "bin/sh").symlink_to("/bin/busybox")
    (rootfs_dir / "sbin").symlink_to("../../../bin")
    files = RootfsFiles(rootfs_dir)
    for name in ("/bin/sh", "/sbin/sh", "sh"):
        command = find_command(files, name, "/nowhere:/sbin", "/")
        assert command is not None
        assert command.node.head == probe_program("linux/arm64")[:256]
        assert command.node.mode == 0o755


def test_only_regular_files_are_found(rootfs_dir: Path) -> None:
    os.mkfifo(rootfs_dir / "bin/pipe")
    (rootfs_dir / "bin/loop").symlink_to("loop")
    files = RootfsFiles(rootfs_dir)
    for name in ("/bin/pipe", "/bin", "/bin/loop", "/bin/nothing", "nothing"):
        assert find_command(files, name) is None


def test_path_lookup_skips_plain_files(rootfs_dir: Path) -> None:
    (rootfs_dir / "first").mkdir()
    (rootfs_dir / "first/app").write_bytes(b"text")
    (rootfs_dir / "bin/app").write_bytes(b"#!/bin/sh\n")
    (rootfs_dir / "bin/app").chmod(0o755)
    command = find_command(RootfsFiles(rootfs_dir), "app", "/first:/bin")
    assert command is not None
    assert command.path == "/bin/app"
