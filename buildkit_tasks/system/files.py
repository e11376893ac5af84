"""Files and folders that appear whole or not at all: written beside their path, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.system.lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "build_atomically",
    "commit_files",
    "remove_stale_partials",
    "temporary_path",
    "write_atomically",
]


_COMPLETE = ".complete"


def build_atomically(destination: Path, fill: Callable[[Path], None], *, dry_run: bool = False) -> Path:
    """Let ``fill`` make a folder beside ``place``, then rename it there; once for all processes.

    Whatever an earlier process left half done is removed first, under the same lock.
    """
    if dry_run:
        fill(destination)
        return destination
    with file_lock(destination.with_name(f".{destination.name}.lock")):
        if (destination / _COMPLETE).exists():
            return destination
        for leftover in (*destination.parent.glob(f".{destination.name}.*.staging"), destination):
            shutil.rmtree(leftover, ignore_errors=True)
        # A name of its own: the apt of a process that was killed may still write into the last one.
        staging = Path(
            tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".staging", dir=destination.parent)
        )
        try:
            fill(staging)
            (staging / _COMPLETE).touch()
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        staging.rename(destination)
    return destination


def temporary_path(dest: Path) -> Path:
    """The temporary name of a file output: in the same folder, so that a rename is atomic."""
    return dest.with_name(f".{dest.name}.{os.getpid()}.partial")


def remove_stale_partials(dest: Path) -> None:
    """Remove what a killed build left beside an output."""
    for leftover in dest.parent.glob(f".{dest.name}.*.partial"):
        pid = leftover.name.removesuffix(".partial").rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            leftover.unlink(missing_ok=True)


def commit_files(moves: Mapping[Path, Path]) -> None:
    """Put finished files in their places, each safely on disk first."""
    for temporary, destination in moves.items():
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(destination)


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.write_text(text, encoding="utf-8")
    commit_files({temporary: path})
