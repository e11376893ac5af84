"""The parts of the sandbox that are values: who a guest is, its environment, the marked emulator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.errors import CheckFailed
from buildkit_tasks.oci.layers.entrypoint import find_command
from buildkit_tasks.platforms import MACHINES, Machine
from buildkit_tasks.run.sandbox.rootfs_files import RootfsFiles
from buildkit_tasks.run.sandbox.supervisor_pool import _copy_with_mark
from buildkit_tasks.run.sandbox.user import User, resolve_user
from tests.support.oci import probe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    (place / "etc").mkdir(parents=True)
    (place / "bin").mkdir()
    lines = [
        "root:x:0:0:root:/root:/bin/sh",
        "app:x:1000:1001::/srv:/bin/sh",
        "odd:x:99999:1::/:",
        "# none",
        "",
    ]
    (place / "etc/passwd").write_text("\n".join(lines), encoding="utf-8")
    groups = ["root:x:0:", "app:x:1001:", "extra:x:7:app,odd", "1002:x:8:", "bad:x:y:app"]
    (place / "etc/group").write_text("\n".join(groups), encoding="utf-8")
    return place


@pytest.mark.parametrize(
    ("stated", "user"),
    [
        ("", User(home="/root")),
        ("root", User(home="/root")),
        ("app", User(uid=1000, gid=1001, groups=(7,), home="/srv")),
        ("1000", User(uid=1000, gid=1001, groups=(7,), home="/srv")),
        ("app:extra", User(uid=1000, gid=7, home="/srv")),
        ("app:1002", User(uid=1000, gid=8, home="/srv")),
        ("4711", User(uid=4711)),
        ("4711:12", User(uid=4711, gid=12)),
        ("0004711", User(uid=4711)),
    ],
)
def test_a_user_is_looked_up_as_docker_does(root: Path, stated: str, user: User) -> None:
    assert resolve_user(stated, root) == user


@pytest.mark.parametrize(
    "stated", ["ghost", "app:ghosts", "70000", "-1", "odd", "1e3", "00000000000099999", ":5"]
)
def test_a_user_that_cannot_be_is_told(root: Path, stated: str) -> None:
    with pytest.raises(CheckFailed, match="USER"):
        resolve_user(stated, root)


def test_without_account_files_numbers_are_all_there_is(tmp_path: Path) -> None:
    assert resolve_user("12:13", tmp_path) == User(uid=12, gid=13)
    assert resolve_user("", tmp_path) == User()
    with pytest.raises(CheckFailed):
        resolve_user("app", tmp_path)


def test_the_hosts_account_files_are_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/passwd").write_text("spy:x:77:77::/:\n", encoding="utf-8")
    place = tmp_path / "root"
    (place / "etc").mkdir(parents=True)
    (place / "etc/passwd").symlink_to(tmp_path / "outside/passwd")
    with pytest.raises(CheckFailed):
        resolve_user("spy", place)
    (place / "etc/passwd").unlink()
    (place / "etc/passwd").symlink_to("../../outside/passwd")
    with pytest.raises(CheckFailed):
        resolve_user("spy", place)


def test_links_are_followed_inside_the_root(root: Path) -> None:
    (root / "bin/busybox").write_bytes(probe("linux/arm64"))
    (root / "bin/busybox").chmod(0o755)
    (root / "bin/sh").symlink_to("/bin/busybox")
    (root / "sbin").symlink_to("../../../bin")
    files = RootfsFiles(root)
    for name in ("/bin/sh", "/sbin/sh", "sh"):
        found = find_command(files, name, "/nowhere:/sbin", "/")
        assert found is not None
        assert found.node.head == probe("linux/arm64")[:256]
        assert found.node.mode == 0o755


def test_what_is_no_file_is_no_program(root: Path) -> None:
    os.mkfifo(root / "bin/pipe")
    (root / "bin/loop").symlink_to("loop")
    files = RootfsFiles(root)
    for name in ("/bin/pipe", "/bin", "/bin/loop", "/bin/nothing", "nothing"):
        assert find_command(files, name) is None


def test_a_plain_file_in_the_path_is_passed_over_for_one_that_may_be_run(root: Path) -> None:
    (root / "first").mkdir()
    (root / "first/app").write_bytes(b"text")
    (root / "bin/app").write_bytes(b"#!/bin/sh\n")
    (root / "bin/app").chmod(0o755)
    found = find_command(RootfsFiles(root), "app", "/first:/bin")
    assert found is not None
    assert found.path == "/bin/app"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)
def test_a_marked_emulator_is_not_matched_by_its_own_machines_handler(
    tmp_path: Path, machine: Machine
) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(machine.magic.ljust(64, b"\0"))
    program.chmod(0o755)
    copy = _copy_with_mark(program, tmp_path / "emulators")

    def matched(data: bytes) -> bool:
        pairs = zip(data, machine.magic, machine.mask, strict=False)
        return all((byte ^ wanted) & mask == 0 for byte, wanted, mask in pairs)

    assert matched(program.read_bytes())
    assert not matched(copy.read_bytes())
    before, after = program.read_bytes(), copy.read_bytes()
    assert after[:9] + after[16:] == before[:9] + before[16:]  # of e_ident only the padding
    assert copy.stat().st_mode & 0o777 == 0o755
    assert _copy_with_mark(program, tmp_path / "emulators") == copy


def test_another_version_of_an_emulator_is_marked_anew(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(b"a" * 64)
    first = _copy_with_mark(program, tmp_path / "emulators")
    program.write_bytes(b"b" * 65)
    assert _copy_with_mark(program, tmp_path / "emulators") != first
