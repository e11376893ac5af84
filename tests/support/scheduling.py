"""Choose the tests of the session ``interop``, and the order and groups in which pytest-xdist runs tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent.parent
_ORDER = ("interop", "integration", "failures", "sandbox", "planted_faults", "fuzz", "property", "unit")
# Programs compiled from foreign sources; Go compiled under emulation, which takes minutes.
_INTEROP_FIXTURES = {"buildkit_image", "crane", "tarlist", "classic"}
# A cold Go toolchain compiles its library for ten platforms: these share an engine, and so its cache.
_GO_BUILDS = {"hello", "samples"}
_SINGLE_TESTS = ("property", "unit")  # directories without expensive fixtures of a module
# All workers use an engine that runs already. Otherwise each worker starts one of its own.
_HAS_SYSTEM_ENGINE = "DOCKER_HOST" in os.environ or Path("/var/run/docker.sock").exists()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the session ``interop``; put long tests first, and those of a file on one worker."""
    items.sort(key=lambda item: _ORDER.index(_directory(item)))
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if _directory(item) == "interop" or fixtures & _INTEROP_FIXTURES:
            item.add_marker(pytest.mark.interop)
        if item.get_closest_marker("xdist_group"):
            continue
        if "engine" in fixtures and _HAS_SYSTEM_ENGINE:
            item.add_marker(pytest.mark.xdist_group("engine"))
        elif fixtures & _GO_BUILDS:
            item.add_marker(pytest.mark.xdist_group("go"))
        elif _directory(item) not in _SINGLE_TESTS:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _directory(item: pytest.Item) -> str:
    return item.path.relative_to(_TESTS).parts[0]
