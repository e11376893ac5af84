"""Fuzz on demand, one target per processor: ``python -m tests.fuzz [--runs N] [--seed S] [TARGET...]``."""

from __future__ import annotations

import argparse
import ast
import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.campaign import SEED, fuzz_target
from tests.fuzz.runner import CaseRunner
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s fuzz --", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=50_000, help="cases for each target (default: 50000)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the mutations")
    parser.add_argument("--driver", choices=["auto", "atheris", "mutations"], default="auto")
    parser.add_argument("--case", metavar="BYTES", help="run this one case, a Python bytes literal")
    args = parser.parse_args()
    unknown = set(args.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    if args.case is not None:
        for name in args.targets:
            CaseRunner(TARGETS[name], 1)(ast.literal_eval(args.case))
        return 0
    run = functools.partial(fuzz_target, runs=args.runs, seed=args.seed, driver=args.driver)
    ok = True
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for campaign in pool.map(run, args.targets or list(TARGETS)):
            sys.stdout.write(f"{campaign}\n")
            sys.stdout.flush()
            ok = ok and campaign.ok and campaign.runs >= args.runs
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
