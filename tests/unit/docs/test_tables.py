"""The generated parts of the pages agree with the code, and the pages with pyproject.toml."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from tests.conftest import ROOT


def load_tables() -> ModuleType:
    """Import ``docs/tables.py``, which is not in a package."""
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs/tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()


@pytest.mark.parametrize("page", TABLES.PAGES)
def test_page_is_current(page: str) -> None:
    assert TABLES.render_page(page) == (ROOT / "docs" / page).read_text(encoding="utf-8"), (
        "run python docs/tables.py"
    )


def test_requirement_has_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TABLES, "REQUIREMENT", "buildkit-tasks")
    for path in (ROOT / "examples/ci").glob("*.yml"):
        text = TABLES.render_page(f"../examples/ci/{path.name}")
        assert set(re.findall(r"pip install (.+)", text)) == {"buildkit-tasks"}
