"""Where guests can have control groups, which count all memory of a guest, also what its processes share.

A limit on resident pages misses what belongs to no process: files in memory (memfd_create(2)), System V
shared memory, the buffers of sockets, inodes. The kernel counts them in a control group. Root may create one
nearly everywhere; an ordinary user where a part of the tree of version 2 is delegated
(``systemd-run --user --scope``). Elsewhere a guest's init counts what it can see.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["CgroupParent", "find_cgroup_parents", "remove_stale_cgroups"]

_PREFIX = "buildkit-tasks-"  # before the PID of the process that has created a group, and removes it
# The files of each controller and their contents; a kernel that does not account swap has not all of them.
# Documentation/admin-guide/cgroup-v2.rst, "Memory" and "PID".
_VERSION_2 = {
    "memory": {"memory.max": "{memory}", "memory.swap.max": "0", "memory.oom.group": "1"},
    "pids": {"pids.max": "{processes}"},
}
# Documentation/admin-guide/cgroup-v1/memory.rst: swap is limited together with memory.
_VERSION_1 = {
    "memory": {
        "memory.limit_in_bytes": "{memory}",
        "memory.memsw.limit_in_bytes": "{memory}",
        "memory.kmem.tcp.limit_in_bytes": "{memory}",
    },
    "pids": {"pids.max": "{processes}"},
}


@dataclass(frozen=True, slots=True)
class CgroupParent:
    """A directory in which this process may create control groups, and the files that limit one there."""

    directory: Path
    files: tuple[tuple[str, str], ...]

    def describe_group(self, *, memory: int, processes: int) -> tuple[str, dict[str, str]]:
        """Return what ``supervisor_main.py`` needs for a group with these limits (bytes, number)."""
        contents = {name: content.format(memory=memory, processes=processes) for name, content in self.files}
        return f"{self.directory}/{_PREFIX}", contents


@cache
def find_cgroup_parents(proc_self: Path = Path("/proc/self")) -> tuple[CgroupParent, ...]:
    """Return where this process may create groups that limit memory; empty if nowhere.

    With version 1 there is one for each controller.
    """
    groups = _read_groups(_read_text(proc_self / "cgroup"))
    mounts = _read_mounts(_read_text(proc_self / "mountinfo"))
    directories = {name: _resolve(group, *mounts[name]) for name, group in groups.items() if name in mounts}
    if "memory" in groups:
        return _find_version_1(directories)
    return _find_version_2(directories.get("") or Path("/"))


def remove_stale_cgroups(parents: tuple[CgroupParent, ...]) -> None:
    """Remove the groups whose creators were killed; a group with processes stays."""
    for parent in parents:
        for directory in parent.directory.glob(f"{_PREFIX}*"):
            if not Path("/proc", directory.name.removeprefix(_PREFIX)).exists():
                with contextlib.suppress(OSError):
                    directory.rmdir()


def _find_version_1(directories: dict[str, Path | None]) -> tuple[CgroupParent, ...]:
    """Return this process's own groups: they may have processes and groups below them."""
    usable = {name: path for name, path in directories.items() if path and _may_create_in(path)}
    if "memory" not in usable:
        return ()
    return tuple(
        CgroupParent(usable[name], tuple(files.items()))
        for name, files in _VERSION_1.items()
        if name in usable
    )


def _find_version_2(own: Path) -> tuple[CgroupParent, ...]:
    """Return the nearest group above this process's own with controllers for groups below it.

    Its own cannot have them: cgroup-v2.rst, "No Internal Process Constraint".
    """
    for directory in (own, *own.parents):
        controllers = _read_controllers(directory)
        if "memory" in controllers and _may_create_in(directory):
            files = [_VERSION_2[name] for name in _VERSION_2 if name in controllers]
            return (CgroupParent(directory, tuple(item for each in files for item in each.items())),)
    return ()


def _read_groups(text: str) -> dict[str, str]:
    """Return this process's group by controller of version 1, and as ``""`` for version 2: cgroups(7)."""
    rows = (line.split(":", 2) for line in text.splitlines())
    return {controller: path for _, names, path in rows for controller in names.split(",")}


def _read_mounts(text: str) -> dict[str, tuple[str, Path]]:
    """Return the root and the mount point of each controller's hierarchy: proc_pid_mountinfo(5)."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        filesystem, *_, options = rest.split(" ")
        if filesystem in ("cgroup", "cgroup2"):
            root, mount_point = fields.split(" ")[3:5]
            names = options.split(",") if filesystem == "cgroup" else [""]
            mounts |= {name: (root, Path(mount_point)) for name in names}
    return mounts


def _resolve(group: str, root: str, mount_point: Path) -> Path | None:
    """Return a group's directory; None if it is outside the mount or, as ``/..``, the cgroup namespace."""
    if ".." in group.split("/") or not Path(group).is_relative_to(root):
        return None
    return mount_point / Path(group).relative_to(root)


def _may_create_in(directory: Path) -> bool:
    return os.access(directory, os.W_OK) and os.access(directory / "cgroup.procs", os.W_OK)


def _read_controllers(directory: Path) -> set[str]:
    try:
        return set(_read_text(directory / "cgroup.subtree_control").split())
    except OSError:  # above the mount point
        return set()


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")
