"""Choose the tests of the session ``interop``, and how pytest-xdist distributes all tests to workers."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).parent.parent
_ORDER = ("interop", "integration", "failures", "sandbox", "planted_faults", "fuzz", "property", "unit")
# Programs compiled from foreign sources; Go compiled under emulation, which takes minutes.
_INTEROP_FIXTURES = {"buildkit_image", "crane", "tarlist", "classic"}
_INTEROP_DIRECTORIES = ("fuzz", "interop")
_SINGLE_TESTS = ("property", "unit")  # directories without expensive fixtures of a module
# Go compiles its library for ten platforms: these share an engine, and so its cache.
_GO_BUILDS = (
    "integration/test_ten_platforms",
    "integration/test_floor_cpu",
    "integration/test_installed_wheel",
    "integration/test_examples",
)
_ENGINE_TESTS = ("interop/", "integration/", "failures/", "planted_faults/")
# All workers use an engine that runs already. Otherwise each worker starts one of its own.
_HAS_SYSTEM_ENGINE = "DOCKER_HOST" in os.environ or Path("/var/run/docker.sock").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the session ``interop``, and put long tests first."""
    items.sort(key=_rank)
    for item in items:
        is_foreign = set(getattr(item, "fixturenames", ())) & _INTEROP_FIXTURES
        if is_foreign or item.path.relative_to(_TESTS).parts[0] in _INTEROP_DIRECTORIES:
            item.add_marker(pytest.mark.interop)


def pytest_collection_finish() -> None:
    """Let no garbage collection go through what collection has made, which is most of a process."""
    gc.collect()
    gc.freeze()


def _rank(item: pytest.Item) -> tuple[bool, int]:
    path = item.path.relative_to(_TESTS)
    return not str(path).startswith(_GO_BUILDS), _ORDER.index(path.parts[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that keeps the tests of a file on one worker, except for quick tests.

    The option ``--dist=loadgroup`` has no effect with pytest 9.2, which computes node ids again.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scheduler(config, log)


def _scope(nodeid: str) -> str:
    """Return the name that a test shares with all tests that run on the same worker."""
    path = nodeid.removeprefix("tests/").partition("::")[0]
    if _HAS_SYSTEM_ENGINE and path.startswith(_ENGINE_TESTS):
        return "engine"
    if path.startswith(_GO_BUILDS):
        return "go"
    return nodeid if path.startswith(_SINGLE_TESTS) else path
