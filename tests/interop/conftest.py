"""Other people's tools as fixtures; where one cannot be had its tests are skipped with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.gotools import CRANE, GoTool, NotToBeHad, compile_here, install


def had(tool: GoTool, config: pytest.Config) -> Path:
    """The tool's program. In CI, which wants everything (``--arch-require-engine``), a missing one fails."""
    try:
        return install(tool)
    except NotToBeHad as error:
        return missing(str(error), config)


def missing(reason: str, config: pytest.Config) -> Path:
    if config.getoption("--arch-require-engine"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def crane(pytestconfig: pytest.Config) -> Path:
    """go-containerregistry's command line, the newest version."""
    return had(CRANE, pytestconfig)


@pytest.fixture(scope="session")
def tarlist(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that lists archives with Go's own reader; it needs Go, and no network."""
    try:
        return compile_here(Path(__file__).parent / "tarlist/main.go", tmp_path_factory.mktemp("tarlist"))
    except NotToBeHad as error:
        return missing(str(error), pytestconfig)
