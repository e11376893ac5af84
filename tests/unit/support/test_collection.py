from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def test_no_folder_of_tests_is_skipped(pytestconfig: pytest.Config) -> None:
    """Without a setting pytest does not look into folders with names such as build and dist."""
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    names = {part for folder in folders for part in folder.relative_to(TESTS).parts}
    assert "build" in names
    patterns = pytestconfig.getini("norecursedirs")
    assert [name for name in sorted(names) if any(fnmatch(name, each) for each in patterns)] == []
