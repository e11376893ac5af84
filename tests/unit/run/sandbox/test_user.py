from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.errors import CheckFailed
from buildkit_tasks.run.sandbox.user import User, resolve_user


@pytest.fixture
def rootfs_dir(tmp_path: Path) -> Path:
    rootfs_dir = tmp_path / "root"
    (rootfs_dir / "etc").mkdir(parents=True)
    lines = [
        "root:x:0:0:root:/root:/bin/sh",
        "app:x:1000:1001::/srv:/bin/sh",
        "odd:x:99999:1::/:",
        "# comment",
        "",
    ]
    (rootfs_dir / "etc/passwd").write_text("\n".join(lines), encoding="utf-8")
    groups = ["root:x:0:", "app:x:1001:", "extra:x:7:app,odd", "1002:x:8:", "bad:x:y:app"]
    (rootfs_dir / "etc/group").write_text("\n".join(groups), encoding="utf-8")
    return rootfs_dir


@pytest.mark.parametrize(
    ("spec", "user"),
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
def test_user_lookup(rootfs_dir: Path, spec: str, user: User) -> None:
    assert resolve_user(spec, rootfs_dir) == user


@pytest.mark.parametrize(
    "spec", ["ghost", "app:ghosts", "70000", "-1", "odd", "1e3", "00000000000099999", ":5"]
)
def test_invalid_user(rootfs_dir: Path, spec: str) -> None:
    with pytest.raises(CheckFailed, match="USER"):
        resolve_user(spec, rootfs_dir)


def test_image_without_passwd(tmp_path: Path) -> None:
    assert resolve_user("12:13", tmp_path) == User(uid=12, gid=13)
    assert resolve_user("", tmp_path) == User()
    with pytest.raises(CheckFailed):
        resolve_user("app", tmp_path)


def test_symlink_to_host_passwd(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/passwd").write_text("spy:x:77:77::/:\n", encoding="utf-8")
    rootfs_dir = tmp_path / "root"
    (rootfs_dir / "etc").mkdir(parents=True)
    (rootfs_dir / "etc/passwd").symlink_to(tmp_path / "outside/passwd")
    with pytest.raises(CheckFailed):
        resolve_user("spy", rootfs_dir)
    (rootfs_dir / "etc/passwd").unlink()
    (rootfs_dir / "etc/passwd").symlink_to("../../outside/passwd")
    with pytest.raises(CheckFailed):
        resolve_user("spy", rootfs_dir)
