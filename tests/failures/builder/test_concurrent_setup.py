from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import PrivateEnginePaths
from buildkit_tasks.system.process import find_processes_by_argument
from tests.conftest import Unchanged
from tests.support.project import TASKS, Project

MANY = 16
SETUP = (*TASKS, "setup-builder", "--json", "--platform=linux/arm64")


def _all_at_once(project: Project) -> list[str]:
    """Run the setup many times at once; each must succeed. Gives what each said on standard output."""
    children = [project.start(SETUP) for _ in range(MANY)]
    ended = [(child.communicate(timeout=180), child.returncode) for child in children]
    assert [code for _, code in ended] == [0] * MANY, [stderr for (_, stderr), _ in ended]
    return [stdout for (stdout, _), _ in ended]


def test_sixteen_setups_at_once_all_succeed_with_one_builder(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    with unchanged():
        documents = [json.loads(text) for text in _all_at_once(project)]
    assert all(document["ok"] for document in documents)
    assert len({document["builder"]["name"] for document in documents}) == 1


@pytest.fixture
def nothing_started(engine: Engine, project: Project) -> Iterator[Project]:
    """A cache that has the packages and nothing else."""
    if engine.kind != "private":
        pytest.skip("no private engine is made here")
    cache = project.folder.parent / "cache"
    cache.mkdir()
    (cache / "debian").symlink_to(cache_folder(load_settings()) / "debian")
    fresh = project.with_env(INVOKE_BUILDKIT_CACHE=str(cache))
    yield fresh
    fresh.task("stop-engine")


def test_sixteen_first_setups_at_once_start_one_engine(
    nothing_started: Project, unchanged: Unchanged
) -> None:
    paths = PrivateEnginePaths(nothing_started.folder.parent / "cache")
    with unchanged():
        documents = [json.loads(text) for text in _all_at_once(nothing_started)]
        assert {document["engine"]["endpoint"] for document in documents} == {paths.endpoint}
        assert len(find_processes_by_argument(paths.root / "daemon.json")) == 1
        nothing_started.task("stop-engine")
    assert not paths.root.exists()
