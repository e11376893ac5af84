"""The catalogue: one TOML file for each package, with a table ``[[mutant]]`` for each mutant.

A mutant has a ``name``, the ``file`` that it changes, the text ``old`` that occurs once in it, the text
``new`` that replaces it, and ``tests``: pytest's arguments for the fewest and quickest tests that catch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


class CatalogueError(Exception):
    """The catalogue does not fit the code."""


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One planted fault."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def changed(self, root: Path = ROOT) -> str:
        """Return the text of the mutated file; raise CatalogueError unless ``old`` occurs once in it."""
        text = (root / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise CatalogueError(f"{self.name}: {self.file} has this text {count} times:\n{self.old}")
        if self.old == self.new or not self.tests:
            raise CatalogueError(f"{self.name}: it changes nothing, or names no tests")
        text = text.replace(self.old, self.new)
        if self.file.endswith(".py"):
            compile(text, f"{self.file} of the mutant {self.name}", "exec")
        return text


class _File(msgspec.Struct, forbid_unknown_fields=True):
    mutant: list[Mutant]


def read(names: Collection[str] = ()) -> list[Mutant]:
    """Return the mutants with these names or of the packages with these names; all without names."""
    files = {path.stem: _mutants(path) for path in sorted(FOLDER.glob("*.toml"))}
    everything = [mutant for mutants in files.values() for mutant in mutants]
    known = Counter(mutant.name for mutant in everything)
    if twice := [name for name, count in known.items() if count > 1]:
        raise CatalogueError(f"two mutants have the same name: {', '.join(twice)}")
    if unknown := set(names) - known.keys() - files.keys():
        raise CatalogueError(f"neither a mutant nor a file of the catalogue: {', '.join(sorted(unknown))}")
    return [
        mutant
        for package, mutants in files.items()
        for mutant in mutants
        if not names or package in names or mutant.name in names
    ]


def _mutants(path: Path) -> list[Mutant]:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_File).mutant
    except msgspec.MsgspecError as error:
        raise CatalogueError(f"{path.name}: {error}") from error
