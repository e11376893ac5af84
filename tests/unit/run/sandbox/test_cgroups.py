"""Where control groups can be created: the trees of both versions, made of ordinary files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.run.sandbox.cgroups import CgroupParent, find_cgroup_parents, remove_stale_cgroups


def proc_self(folder: Path, groups: str, *mounts: str) -> Path:
    """Write the files of /proc/self that are read; a mount is ``ROOT MOUNT_POINT - TYPE SOURCE OPTIONS``."""
    (folder / "self").mkdir()
    (folder / "self/cgroup").write_text(groups)
    lines = [f"31 23 0:28 {each.replace(' - ', ' rw,relatime shared:5 - ')}\n" for each in mounts]
    (folder / "self/mountinfo").write_text("".join(lines))
    return folder / "self"


def group(path: Path, controllers: str | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "cgroup.procs").touch()
    if controllers is not None:
        (path / "cgroup.subtree_control").write_text(controllers)
    return path


@pytest.mark.parametrize(("pids", "names"), [(True, ["memory", "pids"]), (False, ["memory"])])
def test_version_1(tmp_path: Path, pids: bool, names: list[str]) -> None:
    expected = [group(tmp_path / name / "job") for name in names]
    mounts = [f"/ {tmp_path}/{name} - cgroup cgroup rw,{name}" for name in ("memory", "pids")]
    unified = f"/ {tmp_path}/unified - cgroup2 cgroup2 rw"
    rows = f"5:pids:/{'job' if pids else 'other'}\n4:memory:/job\n1:name=systemd:/\n0::/\n"
    parents = find_cgroup_parents(proc_self(tmp_path, rows, *mounts, unified))
    assert [parent.directory for parent in parents] == expected
    files = dict(parents[0].files)
    assert list(files) == [
        "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"
    ]  # fmt: skip


def test_version_2_of_root(tmp_path: Path) -> None:
    """Nothing can be created where this process is: the parent is above it."""
    group(tmp_path / "cgroup", "cpu memory pids\n")
    group(tmp_path / "cgroup/user.slice/session", "")
    mount = f"/ {tmp_path}/cgroup - cgroup2 cgroup2 rw,nsdelegate"
    (parent,) = find_cgroup_parents(proc_self(tmp_path, "0::/user.slice/session\n", mount))
    assert parent.directory == tmp_path / "cgroup"
    assert parent.describe_group(memory=7, processes=9) == (
        f"{tmp_path}/cgroup/buildkit-tasks-",
        {"memory.max": "7", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "9"},
    )


def test_version_2_without_pids(tmp_path: Path) -> None:
    group(tmp_path / "cgroup/a", "memory\n")
    group(tmp_path / "cgroup/a/b", "")
    mount = f"/ {tmp_path}/cgroup - cgroup2 cgroup2 rw"
    (parent,) = find_cgroup_parents(proc_self(tmp_path, "0::/a/b\n", mount))
    assert (parent.directory.name, "pids.max" in dict(parent.files)) == ("a", False)


@pytest.mark.parametrize(
    ("groups", "controllers"),
    [
        ("0::/job\n", ""),  # a container: its own group has no controllers below it
        ("0::/job\n", "cpu pids\n"),
        ("0::/../elsewhere\n", "memory\n"),  # outside the namespace's root
        ("3:memory:/job\n0::/job\n", "memory\n"),  # version 1, which is not mounted
        ("", "memory\n"),
    ],
    ids=["container", "no memory", "outside", "not mounted", "no groups"],
)
def test_nowhere(tmp_path: Path, groups: str, controllers: str) -> None:
    group(tmp_path / "cgroup", controllers)
    group(tmp_path / "cgroup/job", "")
    mount = f"/ {tmp_path}/cgroup - cgroup2 cgroup2 rw"
    assert find_cgroup_parents(proc_self(tmp_path, groups, mount)) == ()


def test_mount_of_a_part(tmp_path: Path) -> None:
    """A container of version 1 sees its own group as the root of the mount."""
    group(tmp_path / "memory")
    mount = f"/docker/1 {tmp_path}/memory - cgroup cgroup ro,memory"
    (parent,) = find_cgroup_parents(proc_self(tmp_path, "4:memory:/docker/1\n", mount))
    assert parent.directory == tmp_path / "memory"


def test_directory_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path / "cgroup", "memory\n")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "cgroup.procs")
    mount = f"/ {tmp_path}/cgroup - cgroup2 cgroup2 rw"
    assert find_cgroup_parents(proc_self(tmp_path, "0::/\n", mount)) == ()


def test_stale_groups(tmp_path: Path) -> None:
    dead, alive, other = "buildkit-tasks-4194305", f"buildkit-tasks-{os.getpid()}", "docker-4194305"
    for name in (dead, alive, other):
        (tmp_path / name).mkdir()
    remove_stale_cgroups((CgroupParent(tmp_path, ()),))
    assert {path.name for path in tmp_path.iterdir()} == {alive, other}
