"""A user's repository in a temporary directory, in which tasks are run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.probe import build_probe_program
from tests.support.task_server import CompletedCommand, TaskServer, needs_new_interpreter

# In the environment of every process that this test session starts, and of no other session's.
MARK = {"BUILDKIT_TASKS_TESTED_BY": uuid.uuid4().hex}
TASKS = (sys.executable, "-m", "buildkit_tasks")
TASK_SERVER = TaskServer()
ILLEGAL_INSTRUCTION = "00 00 00 00"  # undefined on arm64 (udf) and on riscv64: SIGILL


@dataclass(frozen=True, kw_only=True)
class Project:
    """A directory with files, and the environment of commands in it."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def with_env(self, **env: str) -> Project:
        return replace(self, env={**self.env, **env})

    def write(self, files: Mapping[str, str | bytes]) -> Project:
        for name, data in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
            path.chmod(0o755)
        return self

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command here in a new session. It handles SIGINT even if this process ignores it."""
        return subprocess.Popen(
            # Background jobs of a shell ignore SIGINT, and their children inherit that.
            ["/usr/bin/env", "--default-signal=INT", *argv],
            cwd=self.folder,
            env={**os.environ, **MARK, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def command(self, *argv: str, timeout: float = 600) -> CompletedCommand:
        """Run a command here and wait for its end."""
        with self.start(argv) as child:
            try:
                stdout, stderr = child.communicate(timeout=timeout)
            except BaseException:
                child.terminate()
                raise
        return CompletedCommand(code=child.returncode, stdout=stdout, stderr=stderr)

    def task(self, name: str, *options: str, expect: int = 0, timeout: float = 600) -> CompletedCommand:
        """Run a task, which must exit with the expected status and without a traceback."""
        if needs_new_interpreter(self.env):
            done = self.command(*TASKS, name, *options, timeout=timeout)
        else:
            env = {**os.environ, **MARK, **self.env}
            done = TASK_SERVER.run((name, *options), self.folder, env, timeout)
        output = f"{name} ended with {done.code}, not {expect}:\n{done.stdout}\n{done.stderr}"
        assert done.code == expect, output
        assert "Traceback" not in done.stdout + done.stderr, output
        return done

    def json(self, name: str, *options: str, expect: int = 0, timeout: float = 600) -> Any:
        """Run a task with ``--json`` and return its document."""
        return self.task(name, "--json", *options, expect=expect, timeout=timeout).document


def repository(parent: Path) -> Project:
    """Return a repository in ``parent/repo`` that needs no registry, with TMPDIR in ``parent/tmp``."""
    (parent / "tmp").mkdir()
    env = {"TMPDIR": str(parent / "tmp"), "INVOKE_BUILDKIT_BASES": "standin", "NO_COLOR": "1", "CI": ""}
    return Project(folder=parent / "repo", env=env)


def program(platform: str, status: int = 0, *, code: str | None = None) -> bytes:
    """Return a tiny real program for the platform that exits with ``status``, or runs ``code``."""
    machine = Platform.parse(platform).machine
    return build_probe_program(machine if code is None else replace(machine, exit_instructions=code), status)
