"""``python -m tests.fuzz [--runs N] [--seed S] [TARGET...]``: fuzz on demand, two targets at once."""

from __future__ import annotations

import argparse
import ast
import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.campaign import SEED, fuzz
from tests.fuzz.runner import Judge
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s fuzz --", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of: {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=50_000, help="cases for each target (default: 50000)")
    parser.add_argument("--seed", type=int, default=SEED, help="another one finds other cases")
    parser.add_argument("--driver", choices=["auto", "atheris", "mutations"], default="auto")
    parser.add_argument("--case", metavar="BYTES", help="read this one case, written as Python writes bytes")
    asked = parser.parse_args()
    unknown = set(asked.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if asked.case is not None:
        for name in asked.targets:
            Judge(TARGETS[name], 1)(ast.literal_eval(asked.case))
        return 0
    run = functools.partial(fuzz, runs=asked.runs, seed=asked.seed, driver=asked.driver)
    ok = True
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done in pool.map(run, asked.targets or list(TARGETS)):
            sys.stdout.write(f"{done}\n")
            sys.stdout.flush()
            ok = ok and done.ok and done.runs >= asked.runs
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
