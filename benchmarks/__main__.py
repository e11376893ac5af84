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
                print(f"{row.title}: {row.measure:.3f}", file=sys.stderr, flush=True)
                yield row


def _show(rows: Sequence[Row]) -> None:
    table = Table("Benchmark", "Ours", "Theirs", "Measured", "Limit", "Rounds", "Within limit")
    for row in rows:
        sides = (f"{side:.3f} {row.unit}" if side is not None else "" for side in (row.ours, row.theirs))
        limit, verdict = (
            ("", "") if row.limit is None else (f"{row.limit:.3g}", "yes" if row.is_within_limit else "NO")
        )
        table.add_row(row.title, *sides, f"{row.measure:.3f}", limit, f"{row.rounds}", verdict)
    Console(width=140).print(table)


def main() -> int:
    """Run the named groups, by default all."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(_GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (medians are shown)")
    args = parser.parse_args()
    if not set(args.groups) <= set(_GROUPS):
        parser.error(f"known groups are {', '.join(_GROUPS)}")
    rows = list(_measure(args.groups or list(_GROUPS), args.rounds))
    _show(rows)
    return 0 if all(row.is_within_limit for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
