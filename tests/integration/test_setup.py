"""A second setup, ``doctor`` and dry runs change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support import census
from tests.support.oci import hello, write_archive
from tests.support.project import Project


def test_second_setup_changes_nothing(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    first = project.json("setup-builder", "--platform=linux/amd64,linux/arm64")
    with unchanged():
        done = project.task("setup-builder", "--json", "--platform=linux/amd64,linux/arm64")
    assert done.document == first
    assert done.document["ok"]
    # It says which engine it uses, and nothing that it does.
    assert [line for line in done.stderr.splitlines() if not line.endswith("using the private engine")] == []


def test_doctor_after_setup(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    with unchanged():
        report = project.json("doctor", "--platform=linux/amd64,linux/arm64")
    assert report["ok"]
    assert report["next"].endswith("build-multiarch")


@pytest.mark.parametrize(
    "task",
    [
        "setup-builder",
        "build-multiarch",
        "verify-arch image.tar",
        "run-emulated image.tar",
        "arch-matrix",
        "doctor",
        "remove-builder",
        "stop-engine",
    ],
)
def test_dry_run_changes_nothing(engine: Engine, project: Project, unchanged: Unchanged, task: str) -> None:
    assert engine.version
    write_archive(hello(), project.folder / "image.tar")
    project.write({"Dockerfile": "FROM alpine:latest\nRUN true\n"})
    files = _read_files(project.folder.parent)
    with unchanged():
        project.task(*task.split(), "--dry-run")
    assert _read_files(project.folder.parent) == files


@pytest.mark.parametrize("task", ["setup-builder", "build-multiarch", "arch-matrix", "stop-engine"])
def test_dry_run_with_empty_cache(engine: Engine, project: Project, task: str) -> None:
    if engine.kind != "private":
        pytest.skip("this machine has a system engine")
    cache = project.folder.parent / "cache"
    project = project.with_env(INVOKE_BUILDKIT_CACHE=str(cache), INVOKE_BUILDKIT_ENGINE="private")
    project.write({"Dockerfile": "FROM alpine:latest\nRUN true\n"})
    table = census.handlers()
    project.task(task, "--dry-run")
    assert _read_files(cache) == {}
    assert not (project.folder / "dist").exists()
    assert census.handlers() == table


def _read_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
