from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.rootfs import FileType
from buildkit_tasks.oci.limits import Limits
from buildkit_tasks.oci.transports import directory
from buildkit_tasks.oci.transports.directory import DirectoryEntry, find_platform_dirs, walk_directory
from tests.support.unpacking import open_fds


def walk_entries(path: Path) -> dict[str, DirectoryEntry]:
    return {entry.name: entry for entry in walk_directory(path)}


def make_dirs(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
    return path


def test_platform_directories(tmp_path: Path) -> None:
    make_dirs(tmp_path, "linux_arm_v7", "linux_amd64", "windows_amd64")
    (tmp_path / "provenance.linux_amd64.json").write_text("{}")
    directories = [(str(platform), path.name) for platform, path in find_platform_dirs(tmp_path)]
    assert directories == [
        ("linux/amd64", "linux_amd64"), ("linux/arm/v7", "linux_arm_v7"), ("windows/amd64", "windows_amd64"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["usr", "arm_v7", "amd64", "x86_64", "linux", "linux_zz", "linux_arm_v7_x", "a_b"]
)
def test_directory_of_one_platform(name: str, tmp_path: Path) -> None:
    assert find_platform_dirs(make_dirs(tmp_path, name)) == ((None, tmp_path),)


def test_platform_directory_itself(tmp_path: Path) -> None:
    path = make_dirs(tmp_path, "linux_arm64/usr") / "linux_arm64"
    assert [(str(platform), each) for platform, each in find_platform_dirs(path)] == [("linux/arm64", path)]


@pytest.mark.parametrize("make_entry", [Path.mkdir, Path.touch, lambda path: path.symlink_to("linux_amd64")])
def test_mixture_of_two_builds(make_entry: Callable[[Path], None], tmp_path: Path) -> None:
    make_dirs(tmp_path, "linux_amd64")
    make_entry(tmp_path / "usr")
    with pytest.raises(UsageError, match="platform directories linux_amd64 and also usr") as excinfo:
        find_platform_dirs(tmp_path)
    assert excinfo.value.hint == f"use the directory of one platform: dir:{tmp_path}/linux_amd64"


def test_symlink_named_like_platform(tmp_path: Path) -> None:
    make_dirs(tmp_path, "real")
    (tmp_path / "linux_amd64").symlink_to("/etc")
    assert find_platform_dirs(tmp_path) == ((None, tmp_path),)


def test_walk_directory(tmp_path: Path) -> None:
    make_dirs(tmp_path, "b/c")
    (tmp_path / "b/c/file").write_bytes(b"data")
    (tmp_path / "b/c/file").chmod(0o4755)
    (tmp_path / "a").symlink_to("b/c/file")
    files = walk_entries(tmp_path)
    assert [(entry.name, entry.kind) for entry in files.values()] == [
        ("a", FileType.SYMLINK), ("b", FileType.DIRECTORY), ("b/c", FileType.DIRECTORY),
        ("b/c/file", FileType.FILE),
    ]  # fmt: skip
    file = files["b/c/file"]
    assert (file.size, file.mode, files["a"].target) == (4, 0o4755, "b/c/file")
    with file.open() as stream:
        assert stream.read() == b"data"


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    outside = make_dirs(tmp_path, "outside/deep") / "outside"
    (outside / "secret").write_text("x")
    inside = make_dirs(tmp_path, "inside") / "inside"
    (inside / "up").symlink_to("../outside")
    (inside / "loop").symlink_to(".")
    files = walk_entries(inside)
    assert {name: entry.target for name, entry in files.items()} == {"up": "../outside", "loop": "."}
    with pytest.raises(MalformedImage, match="up is not a regular file"):
        files["up"].open()


@pytest.mark.timeout(60)
def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        files = walk_entries(tmp_path)
    assert [entry.kind for entry in files.values()] == [FileType.OTHER, FileType.OTHER]
    for entry in files.values():
        with pytest.raises(MalformedImage, match="not a regular file"):
            entry.open()


def test_hard_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_text("x")
    inodes = {name: (entry.device, entry.inode) for name, entry in walk_entries(tmp_path).items()}
    assert inodes["a"] == inodes["b"] != inodes["c"]


def test_buildx_link_targets(tmp_path: Path) -> None:
    path = make_dirs(tmp_path, "linux_arm64") / "linux_arm64"
    targets = {
        "/linux_arm64/usr/bin/x": "/usr/bin/x", "/linux_arm64": "/", "/linux_arm64x/y": "/linux_arm64x/y",
        "linux_arm64/x": "linux_arm64/x", "../x": "../x", "/linux_amd64/x": "/linux_amd64/x",
    }  # fmt: skip
    for number, target in enumerate(targets):
        (path / str(number)).symlink_to(target)
    assert [entry.target for entry in walk_entries(path).values()] == list(targets.values())
    plain = path.rename(tmp_path / "rootfs")
    assert [entry.target for entry in walk_entries(plain).values()] == list(targets)


def test_current_directory_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_dirs(tmp_path, "linux_arm64") / "linux_arm64")
    assert [str(platform) for platform, _ in find_platform_dirs(Path())] == ["linux/arm64"]


@pytest.mark.parametrize("swapped", ["file", "parent", "parent's link to itself"])
def test_swapped_file_or_parent(swapped: str, tmp_path: Path) -> None:
    path = make_dirs(tmp_path, "root/sub") / "root"
    (path / "sub/file").write_text("x")
    (make_dirs(tmp_path, "evil") / "evil/file").write_text("secret")
    entry = walk_entries(path)["sub/file"]
    if swapped == "file":
        (path / "sub/file").unlink()
        (path / "sub/file").symlink_to(tmp_path / "evil/file")
    else:
        (path / "sub").rename(path / "old")
        (path / "sub").symlink_to(tmp_path / "evil" if swapped == "parent" else "old")
    before = open_fds()
    with pytest.raises(MalformedImage, match="sub/file has changed while the directory was read"):
        entry.open()
    assert open_fds() <= before


def test_replaced_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    entry = walk_entries(tmp_path)["file"]
    (tmp_path / "new").write_text("y")
    (tmp_path / "new").rename(tmp_path / "file")
    before = open_fds()
    with pytest.raises(MalformedImage, match="has changed"):
        entry.open()
    assert open_fds() <= before


def test_abandoned_walk_closes_files(tmp_path: Path) -> None:
    make_dirs(tmp_path, "a/b/c/d")
    before = open_fds()
    walk = walk_directory(tmp_path)
    assert [next(walk).name for _ in range(4)][-1] == "a/b/c/d"
    walk.close()  # type: ignore[attr-defined]
    assert open_fds() <= before


def test_mounted_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dirs(tmp_path, "mounted/secret")
    read_entry = directory._read_entry

    def other_device(*arguments: Any) -> DirectoryEntry:
        entry = read_entry(*arguments)
        return dataclasses.replace(entry, device=entry.device + 1)

    monkeypatch.setattr(directory, "_read_entry", other_device)
    with pytest.raises(MalformedImage, match="mounted is another file system"):
        walk_entries(tmp_path)


def test_depth_and_count_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dirs(tmp_path, "a/b/c/d")
    monkeypatch.setattr(directory, "_MAX_DEPTH", 3)
    with pytest.raises(LimitExceeded, match="more than 3 directories deep"):
        walk_entries(tmp_path)
    monkeypatch.setattr(directory, "LIMITS", Limits(entries=2))
    with pytest.raises(LimitExceeded, match="more than 2 files"):
        walk_entries(tmp_path)
    (tmp_path / "e").touch()
    monkeypatch.setattr(directory, "LIMITS", Limits(nodes=1))
    with pytest.raises(LimitExceeded, match=r"a directory in .* has more than 1 files"):
        walk_entries(tmp_path)


def test_undecodable_names(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")).write_bytes(b"x")
    (entry,) = walk_directory(tmp_path)
    assert os.fsencode(entry.name) == b"\xff\n"
    with entry.open() as stream:
        assert stream.read() == b"x"


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UsageError, match="cannot be read"):
            walk_entries(path)
        with pytest.raises(UsageError, match="cannot be read"):
            find_platform_dirs(path)
