from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.process import find_processes_by_argument
from tests.conftest import Unchanged
from tests.support.project import TASKS, Project

PROCESSES = 16
SETUP = (*TASKS, "setup-builder", "--json", "--platform=linux/arm64")


def _run_setups(project: Project) -> list[str]:
    """Run the setup in many processes at the same time, which must succeed; return their output."""
    children = [project.start(SETUP) for _ in range(PROCESSES)]
    results = [(child.communicate(timeout=180), child.returncode) for child in children]
    assert [code for _, code in results] == [0] * PROCESSES, [stderr for (_, stderr), _ in results]
    return [stdout for (stdout, _), _ in results]


def test_concurrent_setups_of_builder(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    with unchanged():
        documents = [json.loads(text) for text in _run_setups(project)]
    assert all(document["ok"] for document in documents)
    assert len({document["builder"]["name"] for document in documents}) == 1


@pytest.fixture
def fresh_project(engine: Engine, project: Project) -> Iterator[Project]:
    """A project whose cache has only the packages."""
    if engine.kind != "private":
        pytest.skip("the engine is not a private one")
    cache = project.folder.parent / "cache"
    cache.mkdir()
    (cache / "debian").symlink_to(cache_folder(load_settings()) / "debian")
    fresh = project.with_env(INVOKE_BUILDKIT_CACHE=str(cache))
    yield fresh
    fresh.task("stop-engine")


def test_concurrent_setups_of_engine(fresh_project: Project, unchanged: Unchanged) -> None:
    paths = PrivateEnginePaths(fresh_project.folder.parent / "cache")
    with unchanged():
        documents = [json.loads(text) for text in _run_setups(fresh_project)]
        assert {document["engine"]["endpoint"] for document in documents} == {paths.endpoint}
        assert len(find_processes_by_argument(paths.root / "daemon.json")) == 1
        fresh_project.task("stop-engine")
    assert not paths.root.exists()
