"""Apply mutants one after the other and print which test catches each: nox -s mutants -- oci verify."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from tests.mutants import catalogue
from tests.mutants.catalogue import CatalogueError, Mutant
from tests.mutants.generate import survivors
from tests.mutants.workspace import TestRun, Workspace

_FIRST_TIMEOUT = 600.0
_Item = TypeVar("_Item")


def main(arguments: Sequence[str]) -> int:
    """Return 1 if a mutant survives, or if tests fail without a mutant."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants, or packages such as oci (all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at once (2)")
    parser.add_argument("--generate", metavar="MODULE", help="mutate this file; the names are its tests")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        try:
            return (_run_generated if options.generate else _run_catalogue)(options, Path(folder))
        except CatalogueError as error:
            parser.error(str(error))


def _run_catalogue(options: argparse.Namespace, folder: Path) -> int:
    mutants = catalogue.read(options.names)
    for mutant in mutants:
        mutant.changed()
    runner = _Runner([Workspace(folder / str(number)) for number in range(options.jobs)])
    seconds = _run_unchanged(runner, mutants)
    return _run_mutants(runner, mutants, seconds) if seconds else 1


def _run_generated(options: argparse.Namespace, folder: Path) -> int:
    for text in survivors(Workspace(folder).folder, options.generate, options.names, options.jobs):
        sys.stdout.write(f"{text}\n")
    return 0


class _Runner:
    """Runs functions of a workspace in parallel, each with a workspace of its own."""

    def __init__(self, workspaces: Sequence[Workspace]) -> None:
        self._free: SimpleQueue[Workspace] = SimpleQueue()
        for workspace in workspaces:
            self._free.put(workspace)
        self._jobs = len(workspaces)

    def map(
        self, function: Callable[[Workspace, _Item], TestRun], items: Sequence[_Item]
    ) -> Iterator[tuple[_Item, TestRun]]:
        """Yield each item with its result, in the order in which they end."""
        with ThreadPoolExecutor(self._jobs) as executor:
            futures = {executor.submit(self._call, function, item): item for item in items}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                executor.shutdown(cancel_futures=True)

    def _call(self, function: Callable[[Workspace, _Item], TestRun], item: _Item) -> TestRun:
        workspace = self._free.get()
        try:
            return function(workspace, item)
        finally:
            self._free.put(workspace)


def _run_unchanged(runner: _Runner, mutants: Sequence[Mutant]) -> dict[tuple[str, ...], float]:
    """Return the seconds of each set of tests without a mutant; nothing if one of them fails."""
    sets = list(dict.fromkeys(mutant.tests for mutant in mutants))
    results = dict(
        runner.map(lambda workspace, tests: workspace.test(tests, _FIRST_TIMEOUT, compiled=True), sets)
    )
    failed = [result for result in results.values() if result.failed]
    for result in failed:
        sys.stdout.write(f"{result.output}\nWithout a mutant this test fails: {result.failed}\n")
    return {} if failed else {tests: result.seconds for tests, result in results.items()}


def _run_mutants(runner: _Runner, mutants: Sequence[Mutant], seconds: dict[tuple[str, ...], float]) -> int:
    def run(workspace: Workspace, mutant: Mutant) -> TestRun:
        with workspace.apply(mutant):
            return workspace.test(mutant.tests, 30 + 10 * seconds[mutant.tests], compiled=False)

    width = max(len(mutant.name) for mutant in mutants)
    sys.stdout.write(f"{'mutant':{width}}  seconds  caught by\n")
    caught = 0
    for mutant, result in runner.map(run, mutants):
        caught += bool(result.failed)
        sys.stdout.write(f"{mutant.name:{width}}  {result.seconds:7.1f}  {result.failed or 'NOTHING'}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{caught} of {len(mutants)} mutants were caught\n")
    return int(caught < len(mutants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
