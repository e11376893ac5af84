"""Benchmark runs in the sandbox against ``docker run`` and against QEMU alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.timing import Row, command, compare
from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.emulation.qemu import QemuFinder
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import Platform, native_platform
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.process import find_processes_by_argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["measure"]

_ROOT = Path(__file__).parent.parent
_TASKS = [sys.executable, "-m", "buildkit_tasks"]
_SUPERVISOR_MAIN = _ROOT / "buildkit_tasks/run/sandbox/supervisor_main.py"
_RUNS = 100
_MANY = "linux/arm64"


class Bench:
    """The example for ten platforms: as an archive, in the engine, and as extracted programs."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds
        shutil.copytree(_ROOT / "examples" / "hello", directory / "hello")
        shutil.copy(_ROOT / "pyproject.toml", directory)
        self.pipeline = Pipeline(
            settings=load_settings(folder=_ROOT),
            commands=SubprocessRunner(dry_run_output=sys.stderr),
            notify=_notify,
        )
        self.engine = self.pipeline.engine
        self._build("--output=type=oci,dest=hello.tar")
        self._build("--load", "--tag=hello:bench")
        self._build("--output=type=local,dest=out")
        self.image = f"oci-archive:{directory}/hello.tar"

    def sandbox(self, *options: str) -> Callable[[], None]:
        """Run all platforms in the sandbox."""
        return command(
            [*_TASKS, "run-emulated", self.image, "--runner=sandbox", *options], cwd=self.directory
        )

    def first(self) -> Iterator[Row]:
        """Measure runs with an empty rootfs cache, in seconds and against sequential ``docker run``."""
        docker = self.engine.tools.docker
        env = {**os.environ, **self.engine.env}

        def loop() -> None:
            for platform in self.pipeline.platforms:
                command([*docker, "run", "--rm", f"--platform={platform}", "hello:bench"], env=env)()

        ours, theirs = compare(self.sandbox(), loop, rounds=self.rounds, before=self._forget)
        what = "ten platforms, first run in the sandbox"
        yield Row(title=f"{what}: seconds", ours=ours, limit=1.0, rounds=self.rounds)
        yield Row(title=f"{what} / docker run loop", ours=ours, theirs=theirs, limit=0.3, rounds=self.rounds)

    def again(self) -> Row:
        """Compare runs with a filled rootfs cache with QEMU on the ten programs, one after the other."""
        bare = [command(self._bare(platform)) for platform in self.pipeline.platforms]

        def loop() -> None:
            for each in bare:
                each()

        self.sandbox()()
        ours, theirs = compare(self.sandbox(), loop, rounds=3 * self.rounds)
        what = "ten platforms, run again in the sandbox / qemu on the ten programs"
        return Row(title=what, ours=ours, theirs=theirs, limit=1.3, rounds=3 * self.rounds)

    def many(self) -> Row:
        """Measure the overhead over bare QEMU in ms for a hundred runs of one platform, two at a time."""
        bare = command(self._bare(Platform.parse(_MANY)))

        def loop() -> None:
            with ThreadPoolExecutor(max_workers=2) as pool:
                for _ in pool.map(lambda _: bare(), range(_RUNS)):
                    pass

        ours = command(self._suite(_RUNS), cwd=_ROOT)
        ours()
        each = [2 * 1000 * seconds / _RUNS for seconds in compare(ours, loop, rounds=self.rounds)]
        what = f"{_RUNS} runs of {_MANY}, two at once: each - bare qemu"
        return Row(
            title=what,
            ours=each[0],
            theirs=each[1],
            limit=40,
            rounds=self.rounds,
            absolute=True,
            unit="ms",
        )

    def growth(self) -> Row:
        """Measure the memory of one process after a hundred and after a thousand runs."""
        before = self._census()
        hundred, thousand = (self._megabytes(runs) for runs in (_RUNS, 10 * _RUNS))
        if self._census() != before:
            raise SystemExit(f"{11 * _RUNS} runs have left something: {before} is now {self._census()}")
        what = f"memory of {10 * _RUNS} runs / of {_RUNS}, nothing left behind"
        return Row(title=what, ours=thousand, theirs=hundred, rounds=1, unit="MB")

    def _megabytes(self, runs: int) -> float:
        done = subprocess.run(self._suite(runs), cwd=_ROOT, capture_output=True, check=True)
        return float(json.loads(done.stdout)["peak"]) / 1_000_000

    def _census(self) -> list[str]:
        """Count what runs could leave behind: mounts, handlers, our processes, cached root file systems."""
        handlers = Path("/proc/sys/fs/binfmt_misc").glob("qemu-*")
        roots = cache_folder(self.pipeline.settings) / "roots"
        return [
            Path("/proc/self/mounts").read_text(encoding="utf-8"),
            *sorted(f"{path}: {path.read_text(encoding='utf-8')}" for path in handlers),
            *(f"process {each}" for each in find_processes_by_argument(_SUPERVISOR_MAIN)),
            *sorted(str(path) for path in roots.iterdir()),
        ]

    def _suite(self, runs: int) -> list[str]:
        return [sys.executable, "-m", "benchmarks.many", self.image, _MANY, str(runs)]

    def _bare(self, platform: Platform) -> list[str]:
        """Return the argv of QEMU with the program, or of the program alone where it runs natively."""
        folder = f"linux_{platform.slug.replace('-', '_')}"
        program = str(self.directory / "out" / folder / "usr/local/bin/hello")
        if platform.architecture == native_platform().architecture:
            return [program]
        qemu = QemuFinder(
            settings=self.pipeline.settings, commands=self.pipeline.commands, notify=_notify
        ).find(platform.machine)
        return [str(qemu), program]

    def _forget(self) -> None:
        """Remove the cached root file systems."""
        shutil.rmtree(cache_folder(self.pipeline.settings) / "roots", ignore_errors=True)

    def _build(self, *options: str) -> None:
        command([*_TASKS, "build-multiarch", "--context=hello", *options], cwd=self.directory)()


def _notify(message: str) -> None:
    print(message, file=sys.stderr)


def measure(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure every limit of this group in a new directory."""
    bench = Bench(directory, rounds)
    yield from bench.first()
    yield bench.again()
    yield bench.many()
    yield bench.growth()
