from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = (
    "docker",
    "requests",
    "rich",
    "msgspec",
    "isal",
    "backports",
    "filelock",
    "platformdirs",
    "hypothesis",
)


def imported_packages(statement: str, folder: Path) -> set[str]:
    """Return the top-level packages that a new interpreter has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    argv = [sys.executable, "-c", code]
    process = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    return set(process.stdout.split())


@pytest.mark.parametrize("heavy", HEAVY)
def test_detects_imports(heavy: str, tmp_path: Path) -> None:
    if heavy == "backports" and sys.version_info >= (3, 14):
        pytest.skip("in the standard library from 3.14")
    assert heavy in imported_packages(f"import {heavy}", tmp_path)


@pytest.mark.parametrize("module", ["tasks", "pytest_plugin", "nox_sessions"])
def test_entry_points_import_little(module: str, tmp_path: Path) -> None:
    packages = imported_packages(f"import buildkit_tasks.{module}", tmp_path)
    assert "buildkit_tasks" in packages
    assert packages.isdisjoint(HEAVY)


def test_listing_imports_little(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("from buildkit_tasks.tasks import ns\n", encoding="utf-8")
    listing = "from invoke.main import program\nprogram.run(['inv', '--list'], exit=False)"
    packages = imported_packages(listing, tmp_path)
    assert "build-multiarch" in packages
    assert packages.isdisjoint(HEAVY)
