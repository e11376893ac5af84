"""Fixtures for other tools. Tests of a tool that is not available are skipped, or fail in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.gotools import CRANE, GoTool, ToolUnavailable, compile_file, install


def require_tool(tool: GoTool, config: pytest.Config) -> Path:
    """Return the program of a tool. Without it, skip the test, or fail with ``--arch-require-engine``."""
    try:
        return install(tool)
    except ToolUnavailable as error:
        return skip_or_fail(str(error), config)


def skip_or_fail(reason: str, config: pytest.Config) -> Path:
    if config.getoption("--arch-require-engine"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def crane(pytestconfig: pytest.Config) -> Path:
    """The newest version of go-containerregistry's command-line tool."""
    return require_tool(CRANE, pytestconfig)


@pytest.fixture(scope="session")
def tarlist(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that lists archives with Go's archive/tar; compiling it needs Go, but no network."""
    try:
        return compile_file(Path(__file__).parent / "tarlist/main.go", tmp_path_factory.mktemp("tarlist"))
    except ToolUnavailable as error:
        return skip_or_fail(str(error), pytestconfig)
