"""One target in one process: ``python -m tests.fuzz.runner TARGET --runs N --seed S --corpus DIR``.

atheris drives it, guided by coverage; where it cannot be imported, seeded mutations of the same seeds
do. In both, a case fails that raises what its target does not declare, takes over 2 seconds, or makes
the process larger than 256 MiB. The last lines say how many cases were run and how they ended; a
failure is shown as the bytes that cause it.
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

MOST_SECONDS = 2
MOST_MEMORY = 256 << 20
HALF = 0.5
FAILED = 77  # the status that libFuzzer gives a crash


class TooSlow(Exception):
    """A case took longer than it may."""


class Judge:
    """Runs cases, counts them, and shows the one that breaks a promise."""

    def __init__(self, target: Target, runs: int) -> None:
        self._target = target
        self._runs = runs
        self._accepted = self._refused = 0
        self._slowest = 0.0

    def __call__(self, data: bytes) -> None:
        started = time.perf_counter()
        try:
            self._judge(data)
            seconds = time.perf_counter() - started
            if seconds > MOST_SECONDS:
                raise TooSlow(f"{seconds:.1f} s; {MOST_SECONDS} are allowed")  # noqa: TRY301 - one way to fail
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            say(f"REPRODUCER {self._target.name} {data!r}")
            raise
        self._slowest = max(self._slowest, seconds)
        if self._accepted + self._refused == self._runs:
            say(
                f"CASES {self._runs} ACCEPTED {self._accepted} REFUSED {self._refused}"
                f" SLOWEST {self._slowest * 1000:.0f} ms"
            )

    def _judge(self, data: bytes) -> None:
        target = self._target
        try:
            found = target.read(data)
        except target.allowed as error:
            self._refused += 1
            target.refused(data, error)
        else:
            self._accepted += 1
            target.check(data, found)


def say(line: str) -> None:
    """Notify whoever started this, at once: the process may be ended any moment."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def cap_memory() -> None:
    """No allocation may take this process past its limit: it fails there and then, as MemoryError.

    What is resident now counts as used; of what is merely mapped, nothing more than the rest may come.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines)
    sizes = {row[0]: int(row[1]) << 10 for row in rows if row[0] in ("VmRSS:", "VmData:")}
    limit = sizes["VmData:"] + MOST_MEMORY - sizes["VmRSS:"]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def fuzz_with_atheris(target: Target, judge: Judge, asked: argparse.Namespace) -> None:
    """Never returns: libFuzzer ends the process."""
    folder = Path(asked.corpus)
    dictionary = folder.with_name("dictionary")
    words = ("".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens)
    dictionary.write_text("".join(f'"{word}"\n' for word in words), encoding="ascii")
    options = [
        f"-runs={asked.runs}", f"-seed={asked.seed}", f"-timeout={MOST_SECONDS}",
        f"-rss_limit_mb={MOST_MEMORY >> 20}", f"-max_len={target.max_len}", "-len_control=0",
        f"-artifact_prefix={folder.parent}/", "-print_final_stats=0", "-verbosity=1",
    ]  # fmt: skip
    if target.tokens:
        options.append(f"-dict={dictionary}")
    own = {} if target.change is None else {"custom_mutator": _mutator(target.change, list(target.seeds()))}
    atheris.Setup([sys.argv[0], *options, str(folder)], judge, **own)
    cap_memory()
    atheris.Fuzz()


def _mutator(
    change: Callable[[bytes, random.Random], bytes], seeds: list[bytes]
) -> Callable[[bytes, int, int], bytes]:
    """Half of the changes are libFuzzer's; half the format's own, of what libFuzzer found or of a seed."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        if chance.random() < HALF:
            return bytes(atheris.Mutate(data, most))
        return change(data if chance.random() < HALF else chance.choice(seeds), chance)[:most]

    return mutate


def fuzz_with_mutations(target: Target, judge: Judge, asked: argparse.Namespace) -> None:
    """The same cases' kind without atheris: mutations of the seeds, always the same for one ``--seed``."""
    say("atheris is not here: seeded mutations, not guided by coverage")
    cap_memory()
    signal.signal(signal.SIGALRM, _too_slow)
    for data in mutations(list(target.seeds()), target, random.Random(asked.seed), asked.runs):  # noqa: S311
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS + 0.5)
        judge(data)
        signal.setitimer(signal.ITIMER_REAL, 0)
    say(f"Done {asked.runs} runs")


def _too_slow(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TooSlow(f"more than {MOST_SECONDS} s")


def mutations(seeds: list[bytes], target: Target, chance: random.Random, runs: int) -> Iterator[bytes]:
    """The seeds, then changed ones."""
    seeds = seeds or [b""]
    for number in range(runs):
        if target.change is not None and number >= len(seeds) and chance.random() < HALF:
            yield target.change(chance.choice(seeds), chance)[: target.max_len]
            continue
        data = bytearray(seeds[number % len(seeds)] if number < len(seeds) else chance.choice(seeds))
        for _ in range(0 if number < len(seeds) else chance.choice((1, 1, 2, 3, 6))):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.choice((0, 0, 1, 1, 4, 8, len(data)))] = _piece(seeds, target, chance)
        yield bytes(data[: target.max_len])


def _piece(seeds: list[bytes], target: Target, chance: random.Random) -> bytes:
    kind = chance.randrange(5)
    if kind == 0 and target.tokens:
        return chance.choice(target.tokens)
    if kind == 1:
        return bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2F))]) * chance.choice(
            (1, 1, 2, 4, 8, 64)
        )
    if kind == 2:
        other = chance.choice(seeds)
        at = chance.randrange(len(other) + 1)
        return other[at : at + chance.randrange(64)]
    return b"" if kind == 3 else chance.randbytes(chance.choice((1, 1, 1, 2, 4, 8)))


@contextlib.contextmanager
def instrumented(*, guided: bool) -> Iterator[None]:
    """Imports in here give their coverage to libFuzzer."""
    if not guided:
        yield
        return
    quiet = contextlib.redirect_stderr(io.StringIO())  # it names every module
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
    asked = parser.parse_args(argv)
    guided = asked.driver == "atheris" or (asked.driver == "auto" and atheris is not None)
    with instrumented(guided=guided):
        table: Any = importlib.import_module(asked.table)
    warnings.simplefilter("error")
    target: Target = table.TARGETS[asked.target]
    for number, data in enumerate(target.seeds()):
        Path(asked.corpus, f"seed-{number:03}").write_bytes(data)
    fuzz = fuzz_with_atheris if guided else fuzz_with_mutations
    try:
        fuzz(target, Judge(target, asked.runs), asked)
    except BaseException:  # noqa: BLE001 - whatever it was is shown, and the process fails
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(FAILED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
