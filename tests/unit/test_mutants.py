from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import catalogue
from tests.mutants.catalogue import CatalogueError, Mutant


def test_catalogue_fits_the_code() -> None:
    for mutant in catalogue.read():
        mutant.changed()
        assert all((catalogue.ROOT / test.partition("::")[0]).exists() for test in mutant.tests), mutant.name


def test_text_must_occur_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    mutant = Mutant(name="one", file="a.py", old="x = 1", new="x = 2", tests=("tests",))
    assert mutant.changed(tmp_path) == "x = 2\ny = 1\n"
    for old, times in (("= 1", 2), ("z", 0)):
        with pytest.raises(CatalogueError, match=f"a.py has this text {times} times"):
            Mutant(name="one", file="a.py", old=old, new="", tests=("tests",)).changed(tmp_path)


def test_select_by_name_and_package() -> None:
    assert {mutant.file.split("/")[1] for mutant in catalogue.read(["verify"])} == {"verify"}
    first = catalogue.read()[0]
    assert catalogue.read([first.name]) == [first]
    with pytest.raises(CatalogueError, match="neither a mutant nor a file of the catalogue: nothing"):
        catalogue.read(["nothing"])
