"""The environment variables of tests."""

from __future__ import annotations

import fnmatch
import os

import pytest

# Options of a pytest that a test starts, for plugins that take long to import or change the order of tests.
NO_OTHER_PLUGINS = ("-pno:docker", "-pno:hypothesispytest", "-pno:playwright", "-pno:randomly")


def delete_env(monkeypatch: pytest.MonkeyPatch, *patterns: str) -> None:
    """Delete the environment variables whose names match one of the shell patterns."""
    for name in list(os.environ):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            monkeypatch.delenv(name)


def minimal_env(**more: str) -> dict[str, str]:
    """Return the variables that a Python subprocess needs to import this package, and others."""
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | more
