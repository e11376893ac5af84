"""Measure every documented limit and print a table; exit with 1 if one is exceeded."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks import building, releasing, running, verifying

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.timing import Row

_GROUPS = {
    "building": building.measure,
    "running": running.measure,
    "verifying": verifying.measure,
    "releasing": releasing.measure,
}


def _measure(groups: Sequence[str], rounds: int) -> Iterator[Row]:
    for group in groups:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for row in _GROUPS[group](Path(folder), rounds):
                print(f"{row.promise}: {row.measure:.3f}", file=sys.stderr, flush=True)
                yield row


def _show(rows: Sequence[Row]) -> None:
    table = Table("Promise", "Ours", "Theirs", "Measured", "Limit", "Rounds", "Holds")
    for row in rows:
        sides = (f"{side:.3f} {row.unit}" if side is not None else "" for side in (row.ours, row.theirs))
        limit, holds = ("", "") if row.limit is None else (f"{row.limit:.3g}", "yes" if row.holds else "NO")
        table.add_row(row.promise, *sides, f"{row.measure:.3f}", limit, f"{row.rounds}", holds)
    Console(width=140).print(table)


def main() -> int:
    """Run the named groups, by default all."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(_GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (medians are shown)")
    given = parser.parse_args()
    if not set(given.groups) <= set(_GROUPS):
        parser.error(f"known groups are {', '.join(_GROUPS)}")
    rows = list(_measure(given.groups or list(_GROUPS), given.rounds))
    _show(rows)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
