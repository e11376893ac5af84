from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.oci.layers.entrypoint import find_command
from buildkit_tasks.run.sandbox.rootfs_files import RootfsFiles
from tests.support.oci import probe_program


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/bin").mkdir(parents=True)
    return tmp_path / "root"


def test_symlinks_resolve_in_root(root: Path) -> None:
    (root / "bin/busybox").write_bytes(probe_program("linux/arm64"))
    (root / "bin/busybox").chmod(0o755)
    (root / "bin/sh").symlink_to("/bin/busybox")
    (root / "sbin").symlink_to("../../../bin")
    files = RootfsFiles(root)
    for name in ("/bin/sh", "/sbin/sh", "sh"):
        command = find_command(files, name, "/nowhere:/sbin", "/")
        assert command is not None
        assert command.node.head == probe_program("linux/arm64")[:256]
        assert command.node.mode == 0o755


def test_only_regular_files_are_found(root: Path) -> None:
    os.mkfifo(root / "bin/pipe")
    (root / "bin/loop").symlink_to("loop")
    files = RootfsFiles(root)
    for name in ("/bin/pipe", "/bin", "/bin/loop", "/bin/nothing", "nothing"):
        assert find_command(files, name) is None


def test_path_lookup_skips_plain_files(root: Path) -> None:
    (root / "first").mkdir()
    (root / "first/app").write_bytes(b"text")
    (root / "bin/app").write_bytes(b"#!/bin/sh\n")
    (root / "bin/app").chmod(0o755)
    command = find_command(RootfsFiles(root), "app", "/first:/bin")
    assert command is not None
    assert command.path == "/bin/app"
