"""Fixtures for other tools. Tests of a tool that cannot be downloaded are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.go_tools import CRANE, GoTool, ToolUnavailable, compile_file, install


def require_tool(tool: GoTool) -> Path:
    """Return the program of a tool, or skip the test with the reason why it cannot be downloaded."""
    try:
        return install(tool)
    except ToolUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def crane() -> Path:
    """The newest version of go-containerregistry's command-line tool."""
    return require_tool(CRANE)


@pytest.fixture(scope="session")
def tarlist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that lists archives with Go's archive/tar."""
    return compile_here("tarlist", tmp_path_factory)


@pytest.fixture(scope="session")
def foldkeys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints which characters Go's encoding/json takes for one."""
    return compile_here("foldkeys", tmp_path_factory)


def compile_here(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program of this directory, or skip the test; compiling it needs Go, but no network."""
    try:
        return compile_file(Path(__file__).parent / name / "main.go", tmp_path_factory.mktemp(name))
    except ToolUnavailable as error:
        pytest.skip(str(error))
