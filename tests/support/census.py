"""Record what a task could leave behind (containers, processes, mounts...), to compare it afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.host.engine.sdk import connect_client
from tests.support.project import MARK

BINFMT = Path("/proc/sys/fs/binfmt_misc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """The state at one moment. The engine's fields are empty if no engine was queried."""

    containers: frozenset[str]
    volumes: frozenset[str]
    images: frozenset[str]
    builders: frozenset[str]
    processes: frozenset[str]
    mounts: frozenset[str]
    files: frozenset[str]
    handlers: tuple[tuple[str, bytes], ...]

    def differences(self, after: Census) -> dict[str, tuple[Any, Any]]:
        """Return the removed and the new items by kind."""
        changes = {}
        for each in fields(self):
            old, new = frozenset(getattr(self, each.name)), frozenset(getattr(after, each.name))
            if old != new:
                changes[each.name] = (sorted(old - new), sorted(new - old))
        return changes


def take(engine: Engine | None, *folders: Path) -> Census:
    """Take a census. ``folders`` and the cache directory are searched for temporary files."""
    cache = cache_folder(load_settings())
    containers: set[str] = set()
    volumes: set[str] = set()
    images: set[str] = set()
    if engine is not None:
        with contextlib.closing(connect_client(engine)) as client:
            containers = {each["Id"] for each in client.api.containers(all=True)}
            volumes = {each["Name"] for each in client.api.volumes()["Volumes"] or ()}
            images = {f"{each['Id']} {each.get('RepoTags')}" for each in client.api.images(all=True)}
    builders = Path(engine.env["BUILDX_CONFIG"] if engine and engine.env else Path.home() / ".docker/buildx")
    return Census(
        containers=frozenset(containers),
        volumes=frozenset(volumes),
        images=frozenset(images),
        builders=frozenset(path.name for path in (builders / "instances").glob("*")),
        processes=frozenset(_processes()),
        mounts=frozenset(_mounts(cache)),
        files=frozenset(file for folder in (cache, *folders) for file in _temporary_files(folder)),
        handlers=handlers(),
    )


def handlers() -> tuple[tuple[str, bytes], ...]:
    """Return the handler table byte for byte."""
    names = sorted(BINFMT.iterdir()) if BINFMT.is_dir() else []
    return tuple((path.name, path.read_bytes()) for path in names if path.name not in ("register", "status"))


def _processes() -> Iterator[str]:
    """Yield the processes started by a test, descendants included: they inherit its environment variable."""
    ((name, value),) = MARK.items()
    mark = f"{name}={value}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # a zombie has none
                    yield f"{entry.name} {command.strip()}"


def _mounts(cache: Path) -> Iterator[str]:
    prefixes = (str(cache), str(PrivateEnginePaths(cache).runtime_dir), str(BINFMT))
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount_point = line.split(" ")[4]
        if mount_point.startswith(prefixes):
            yield mount_point


def _temporary_files(folder: Path) -> Iterator[str]:
    """Yield hidden files that are not locks, except for the daemon's data."""
    for root, names, files in os.walk(folder):
        if Path(root).parent == folder:
            names[:] = [name for name in names if name != "data"]
        for name in (*names, *files):
            if name.endswith((".staging", ".partial")) or name.startswith((".probe-", "buildkit-tasks-")):
                yield str(Path(root) / name)
        names[:] = [name for name in names if name not in ("usr", "etc", "lib", "blobs")]
