"""One target in one process: ``python -m tests.fuzz.runner TARGET --runs N --seed S --corpus DIR``.

The driver is atheris, guided by coverage; without atheris it is seeded mutations of the same seeds. A
case fails if it raises an error that its target does not declare, takes more than 2 CPU seconds, or lets
the process grow beyond 256 MiB. The last lines of output are the numbers of cases and their results; a
failing case is printed as a bytes literal.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.target import Target

try:
    atheris: Any = importlib.import_module("atheris")
except ImportError:
    atheris = None

MAX_SECONDS = 2  # of CPU time
_HANG_SECONDS = 10  # libFuzzer measures the wall-clock time of a case
MAX_MEMORY = 256 << 20
HALF = 0.5
REPEAT = 1 / 256
EXIT_CRASH = 77  # libFuzzer's exit status for a crash


class CaseTimeout(Exception):
    """A case took more CPU time than MAX_SECONDS."""


class CaseRunner:
    """Runs and counts cases, and prints the one that fails."""

    def __init__(self, target: Target, runs: int) -> None:
        self._target = target
        self._runs = runs
        self._accepted = self._refused = 0
        self._slowest = 0.0

    def __call__(self, data: bytes) -> None:
        started = time.process_time()
        try:
            self._run_case(data)
            seconds = time.process_time() - started
            if seconds > MAX_SECONDS:
                raise CaseTimeout(f"{seconds:.1f} s; the limit is {MAX_SECONDS} s")  # noqa: TRY301 - handled below
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            print_line(f"REPRODUCER {self._target.name} {data!r}")
            raise
        self._slowest = max(self._slowest, seconds)
        if self._accepted + self._refused == self._runs:
            print_line(
                f"CASES {self._runs} ACCEPTED {self._accepted} REFUSED {self._refused}"
                f" SLOWEST {self._slowest * 1000:.0f} ms"
            )

    def _run_case(self, data: bytes) -> None:
        target = self._target
        try:
            result = target.read(data)
        except target.allowed_errors as error:
            self._refused += 1
            target.check_error(data, error)
        else:
            self._accepted += 1
            target.check_result(data, result)


def print_line(line: str) -> None:
    """Print without buffering: libFuzzer may end the process at any time."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def limit_memory() -> None:
    """Make allocations fail with MemoryError once MAX_MEMORY is in use (RLIMIT_DATA, see setrlimit(2)).

    RLIMIT_DATA limits mapped data (VmData). Only the resident part of it (VmRSS) counts as used so far.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines)
    sizes = {row[0]: int(row[1]) << 10 for row in rows if row[0] in ("VmRSS:", "VmData:")}
    limit = sizes["VmData:"] + MAX_MEMORY - sizes["VmRSS:"]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def fuzz_with_atheris(target: Target, run_case: CaseRunner, args: argparse.Namespace) -> None:
    """Fuzz with libFuzzer, which ends the process."""
    corpus = Path(args.corpus)
    dictionary = corpus.with_name("dictionary")
    escaped = ("".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens)
    dictionary.write_text("".join(f'"{token}"\n' for token in escaped), encoding="ascii")
    options = [
        f"-runs={args.runs}", f"-seed={args.seed}", f"-timeout={_HANG_SECONDS}",
        f"-rss_limit_mb={MAX_MEMORY >> 20}", f"-max_len={target.max_len}", "-len_control=0",
        f"-artifact_prefix={corpus.parent}/", "-print_final_stats=0", "-verbosity=1",
    ]  # fmt: skip
    if target.tokens:
        options.append(f"-dict={dictionary}")
    mutator = _make_mutator(target.mutate, list(target.seeds()))
    atheris.Setup([sys.argv[0], *options, str(corpus)], run_case, custom_mutator=mutator)
    limit_memory()
    atheris.Fuzz()


def _make_mutator(
    mutate_document: Callable[[bytes, random.Random], bytes] | None, seeds: list[bytes]
) -> Callable[[bytes, int, int], bytes]:
    """Return a mutator that mutates bytes half of the time, and otherwise a whole document.

    Now and then it repeats a piece up to the limit of the reader, which shows what is not linear.
    """

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
        if rng.random() < REPEAT:
            return repeat_piece(data, rng, max_size)
        if mutate_document is None:
            return bytes(atheris.Mutate(data, max_size))
        if rng.random() < HALF:
            return bytes(atheris.Mutate(data, max_size))
        return mutate_document(data if rng.random() < HALF else rng.choice(seeds), rng)[:max_size]

    return mutate


def repeat_piece(data: bytes, rng: random.Random, max_len: int) -> bytes:
    """Repeat a piece of the input until it is as long as the reader's limit, or a part of that."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 2, 3, 5, 8, 16, 64, 512))] or b"a"
    size = max_len >> rng.choice((0, 1, 2, 4, 6, 8))
    return (data[:start] + piece * (max(size - len(data), 0) // len(piece)) + data[start:])[:max_len]


def fuzz_with_mutations(target: Target, run_case: CaseRunner, args: argparse.Namespace) -> None:
    """Fuzz with mutations of the seeds, which depend only on ``--seed``."""
    print_line("atheris is not installed: seeded mutations, not guided by coverage")
    limit_memory()
    signal.signal(signal.SIGPROF, _raise_timeout)
    for data in iter_cases(list(target.seeds()), target, random.Random(args.seed), args.runs):  # noqa: S311
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS + 0.5)
        run_case(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
    print_line(f"Done {args.runs} runs")


def _raise_timeout(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise CaseTimeout(f"more than {MAX_SECONDS} s")


def iter_cases(seeds: list[bytes], target: Target, rng: random.Random, runs: int) -> Iterator[bytes]:
    """Yield the seeds, then mutations of them."""
    seeds = seeds or [b""]
    for number in range(runs):
        if number >= len(seeds) and rng.random() < REPEAT:
            yield repeat_piece(rng.choice(seeds), rng, target.max_len)
            continue
        if target.mutate is not None and number >= len(seeds) and rng.random() < HALF:
            yield target.mutate(rng.choice(seeds), rng)[: target.max_len]
            continue
        data = bytearray(seeds[number % len(seeds)] if number < len(seeds) else rng.choice(seeds))
        for _ in range(0 if number < len(seeds) else rng.choice((1, 1, 2, 3, 6))):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice((0, 0, 1, 1, 4, 8, len(data)))] = _random_bytes(seeds, target, rng)
        yield bytes(data[: target.max_len])


def _random_bytes(seeds: list[bytes], target: Target, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0 and target.tokens:
        return rng.choice(target.tokens)
    if kind == 1:
        return bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2F))]) * rng.choice((1, 1, 2, 4, 8, 64))
    if kind == 2:
        other = rng.choice(seeds)
        at = rng.randrange(len(other) + 1)
        return other[at : at + rng.randrange(64)]
    return b"" if kind == 3 else rng.randbytes(rng.choice((1, 1, 1, 2, 4, 8)))


@contextlib.contextmanager
def instrument_imports(*, enabled: bool) -> Iterator[None]:
    """Report the coverage of modules that are imported in this context to libFuzzer."""
    if not enabled:
        yield
        return
    quiet = contextlib.redirect_stderr(io.StringIO())  # atheris prints every module
    with quiet, atheris.instrument_imports(include=["buildkit_tasks"], enable_loader_override=False):
        yield


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--table", default="tests.fuzz.targets")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--driver", choices=["auto", "atheris", "mutations"], default="auto")
    args = parser.parse_args(argv)
    use_atheris = args.driver == "atheris" or (args.driver == "auto" and atheris is not None)
    with instrument_imports(enabled=use_atheris):
        table: Any = importlib.import_module(args.table)
    warnings.simplefilter("error")
    target: Target = table.TARGETS[args.target]
    for number, data in enumerate(target.seeds()):
        Path(args.corpus, f"seed-{number:03}").write_bytes(data)
    fuzz = fuzz_with_atheris if use_atheris else fuzz_with_mutations
    try:
        fuzz(target, CaseRunner(target, args.runs), args)
    except BaseException:  # noqa: BLE001 - print any error and exit
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(EXIT_CRASH)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
