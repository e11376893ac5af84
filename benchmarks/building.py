"""Benchmark building and running against buildx, ``go build`` and ``docker run``."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.timing import Row, command, compare
from buildkit_tasks.build.standin_bases import fetch_go
from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.system.command import SubprocessRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildkit_tasks.platforms import Platform

__all__ = ["Bench", "measure"]

_ROOT = Path(__file__).parent.parent
_EXAMPLE = _ROOT / "examples" / "hello"
_CLASSIC = _ROOT / "tests" / "fixtures" / "classic"
_TASKS = [sys.executable, "-m", "buildkit_tasks"]


# Invoke lists no file without a task.
_EMPTY = """from invoke import task


@task
def nothing(c):
    \"\"\"Do nothing.\"\"\"
"""


class Bench:
    """A temporary repository with the example, and a pipeline on the real engine."""

    def __init__(self, directory: Path, rounds: int) -> None:
        self.directory = directory
        self.rounds = rounds
        self.example = directory / "hello"
        shutil.copytree(_EXAMPLE, self.example)
        shutil.copy(_ROOT / "pyproject.toml", directory)
        self.pipeline = Pipeline(
            settings=load_settings(folder=_ROOT),
            commands=SubprocessRunner(dry_run_output=sys.stderr),
            notify=_notify,
        )
        self.engine = self.pipeline.engine
        self.env = {**os.environ, **self.engine.env}
        self.options = ["--context=hello", "--tag=hello:bench"]
        self.edits = 0

    def tasks(self, *arguments: str) -> list[str]:
        """Return the argv of one of our tasks."""
        return [*_TASKS, *arguments]

    def edit(self, source: Path | None = None) -> None:
        """Change the program, so that no compiler cache applies."""
        self.edits += 1
        path = (source or self.example) / "main.go"
        text = path.read_text(encoding="utf-8").split("// edit")[0]
        path.write_text(f"{text}// edit {os.getpid()} {self.edits}\n", encoding="utf-8")

    def raw_build(self) -> list[str]:
        """Return the buildx command of our task, taken from its dry run."""
        argv = self.tasks("build-multiarch", "--dry-run", *self.options)
        done = subprocess.run(argv, cwd=self.directory, capture_output=True, text=True, check=True)
        buildx_argv = shlex.split(done.stdout.splitlines()[-1])
        return [arg for arg in buildx_argv if not arg.startswith(("DOCKER_", "BUILDX_", "--metadata-file="))]

    def unchanged(self) -> Row:
        """Compare an unchanged build with ``docker buildx build`` and the same flags."""
        ours = command(self.tasks("build-multiarch", *self.options), cwd=self.directory)
        ours()
        raw = command(self.raw_build(), cwd=self.directory, env=self.env)
        times = compare(ours, raw, rounds=self.rounds)
        return _row("nothing changed: build-multiarch / raw buildx", times, 1.35, self.rounds)

    def edited(self) -> Iterator[Row]:
        """Compare a build after an edit of main.go with a ``go build`` loop and with the emulated build."""
        go = self._go_loop()
        ours = command(self.tasks("build-multiarch", *self.options), cwd=self.directory)
        ours()
        go()
        times = compare(ours, go, rounds=self.rounds, before=self.edit)
        yield _row("edit of main.go: build-multiarch / bare go build loop", times, 3.0, self.rounds)
        classic = self.directory / "classic"
        shutil.copytree(_CLASSIC, classic)
        argv = self.tasks("build-multiarch", "--context=classic", "--tag=classic:bench")
        command(argv, cwd=self.directory)()
        slow = compare(command(argv, cwd=self.directory), rounds=1, before=lambda: self.edit(classic))
        yield _row("edit of main.go: build-multiarch / classic Dockerfile", [times[0], slow[0]], 0.1, 1)

    def _go_loop(self) -> Callable[[], None]:
        """Run the compiler on the host for one target after the other with a warm cache: the lower bound."""
        go = fetch_go(self.directory / "toolchain", self.pipeline.commands) / "bin/go"
        targets = [_go_environment(platform) for platform in self.pipeline.platforms]
        cache = {
            "GOCACHE": str(self.directory / "gocache"),
            "CGO_ENABLED": "0",
            "GOOS": "linux",
            "GOTOOLCHAIN": "local",
        }

        def loop() -> None:
            for number, target in enumerate(targets):
                argv = [
                    str(go),
                    "build",
                    "-trimpath",
                    "-ldflags=-s -w",
                    "-o",
                    f"{self.directory}/out{number}",
                    "main.go",
                ]
                command(argv, cwd=self.example, env={**os.environ, **cache, **target})()

        return loop

    def emulated(self) -> Row:
        """Compare ten runs with Docker with sequential ``docker run``."""
        command(self.tasks("build-multiarch", *self.options, "--load"), cwd=self.directory)()
        docker = self.engine.tools.docker

        def loop() -> None:
            for platform in self.pipeline.platforms:
                command([*docker, "run", "--rm", f"--platform={platform}", "hello:bench"], env=self.env)()

        ours = command(self.tasks("run-emulated", "docker-daemon:hello:bench"), cwd=self.directory)
        times = compare(ours, loop, rounds=self.rounds)
        return _row("ten platforms: run-emulated / docker run loop", times, 0.7, self.rounds)

    def listing(self) -> Row:
        """Compare ``inv --list`` with our tasks and with an empty tasks file."""
        folders = {"ours": "from buildkit_tasks.tasks import ns\n", "empty": _EMPTY}
        sides = []
        for name, text in folders.items():
            folder = self.directory / name
            folder.mkdir()
            (folder / "tasks.py").write_text(text, encoding="utf-8")
            sides.append(command([str(Path(sys.executable).with_name("inv")), "--list"], cwd=folder))
        rounds = 5 * self.rounds
        times = compare(*sides, rounds=rounds)
        return _row("inv --list: ours - an empty tasks file (s)", times, 0.06, rounds, absolute=True)


def _go_environment(platform: Platform) -> dict[str, str]:
    variant = {"GOARM": platform.variant.removeprefix("v")} if platform.architecture == "arm" else {}
    return {"GOARCH": platform.architecture, **variant}


def _row(title: str, times: list[float], limit: float, rounds: int, *, absolute: bool = False) -> Row:
    ours, theirs = times
    return Row(title=title, ours=ours, theirs=theirs, limit=limit, rounds=rounds, absolute=absolute)


def _notify(message: str) -> None:
    print(message, file=sys.stderr)


def measure(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure every limit of this group in a new directory."""
    bench = Bench(directory, rounds)
    yield bench.listing()
    yield bench.unchanged()
    yield bench.emulated()
    yield from bench.edited()
