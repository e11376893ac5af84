from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.oci.layers.entrypoint import find_command
from buildkit_tasks.oci.model import ImageConfig
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.backend import explain_missing_loader
from buildkit_tasks.run.sandbox.rootfs_files import RootfsFiles
from tests.support.elf import elf
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


def test_directories(rootfs_dir: Path) -> None:
    (rootfs_dir / "link").symlink_to("/bin")
    (rootfs_dir / "file").write_bytes(b"x")
    files = RootfsFiles(rootfs_dir)
    names = ("/bin", "/link", "/file", "/gone")
    assert [files.is_directory(name) for name in names] == [True, True, False, False]


ARM64 = Platform.parse("linux/arm64")
LOADER = "/lib/ld-linux-aarch64.so.1"


def explain(rootfs_dir: Path, data: bytes, working_dir: str = "/") -> str:
    (rootfs_dir / "app").write_bytes(data)
    (rootfs_dir / "app").chmod(0o755)
    config = ImageConfig(
        os="linux", architecture="arm64", variant="", entrypoint=("/app",), cmd=(), env=(),
        working_dir=working_dir, user="", diff_ids=(),
    )  # fmt: skip
    return explain_missing_loader(config, RootfsFiles(rootfs_dir), ARM64)


def test_missing_loader(rootfs_dir: Path) -> None:
    program = elf("linux/arm64", interpreter=LOADER)
    message, _, hint = explain(rootfs_dir, program).partition("\n")
    assert message == f"/app cannot start: its loader {LOADER} is not in the image"
    assert "link it statically" in hint
    (rootfs_dir / "lib").mkdir()
    (rootfs_dir / "lib/ld-musl-aarch64.so.1").write_bytes(b"")
    assert "linked against glibc, and this is a musl image (Alpine)" in explain(rootfs_dir, program)
    (rootfs_dir / LOADER[1:]).write_bytes(b"")
    assert explain(rootfs_dir, program) == ""


def test_no_missing_loader(rootfs_dir: Path) -> None:
    for data in (b"", b"#!/bin/sh\n", b"\x7fELF", elf("linux/arm64")):
        assert explain(rootfs_dir, data) == ""
    (rootfs_dir / "bin/ld.so").write_bytes(b"")
    relative = elf("linux/arm64", interpreter="./ld.so")
    assert explain(rootfs_dir, relative, "/bin") == ""
    assert "its loader ./ld.so is not in the image" in explain(rootfs_dir, relative)


def test_path_lookup_skips_plain_files(rootfs_dir: Path) -> None:
    (rootfs_dir / "first").mkdir()
    (rootfs_dir / "first/app").write_bytes(b"text")
    (rootfs_dir / "bin/app").write_bytes(b"#!/bin/sh\n")
    (rootfs_dir / "bin/app").chmod(0o755)
    command = find_command(RootfsFiles(rootfs_dir), "app", "/first:/bin")
    assert command is not None
    assert command.path == "/bin/app"
