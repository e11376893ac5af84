"""Files and folders that appear whole or not at all: written beside their path, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.system.lock import only_one

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "beside",
    "reap_partials",
    "settle",
    "staged",
    "write_beside",
]


_COMPLETE = ".complete"


def staged(place: Path, fill: Callable[[Path], None], *, dry_run: bool = False) -> Path:
    """Let ``fill`` make a folder beside ``place``, then rename it there; once for all processes.

    Whatever an earlier process left half done is removed first, under the same lock.
    """
    if dry_run:
        fill(place)
        return place
    with only_one(place.with_name(f".{place.name}.lock")):
        if (place / _COMPLETE).exists():
            return place
        for leftover in (*place.parent.glob(f".{place.name}.*.staging"), place):
            shutil.rmtree(leftover, ignore_errors=True)
        # A name of its own: the apt of a process that was killed may still write into the last one.
        staging = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".staging", dir=place.parent))
        try:
            fill(staging)
            (staging / _COMPLETE).touch()
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        staging.rename(place)
    return place


def beside(dest: Path) -> Path:
    """The temporary name of a file output: in the same folder, so that a rename is atomic."""
    return dest.with_name(f".{dest.name}.{os.getpid()}.partial")


def reap_partials(dest: Path) -> None:
    """Remove what a killed build left beside an output."""
    for leftover in dest.parent.glob(f".{dest.name}.*.partial"):
        pid = leftover.name.removesuffix(".partial").rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            leftover.unlink(missing_ok=True)


def settle(moves: Mapping[Path, Path]) -> None:
    """Put finished files in their places, each safely on disk first."""
    for temporary, place in moves.items():
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(place)


def write_beside(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.write_text(text, encoding="utf-8")
    settle({temporary: path})
