from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.process import Process, find_processes_by_argument
from tests.conftest import Unchanged

NAME = "killed"

Start = Callable[[], tuple[Engine, Process]]


@pytest.fixture
def paths() -> PrivateEnginePaths:
    return PrivateEnginePaths(cache_folder(load_settings()), NAME)


@pytest.fixture
def start(engine: Engine, paths: PrivateEnginePaths) -> Iterator[Start]:
    """Starts another private engine, whose daemon a test may kill."""
    if engine.kind != "private":
        pytest.skip("the engine is not a private one")
    settings, run = load_settings(), SubprocessRunner(dry_run_output=sys.stderr)

    def ensure() -> tuple[Engine, Process]:
        started = ensure_private_engine(settings, run, lambda _: None, name=NAME)
        (daemon,) = find_processes_by_argument(paths.root / "daemon.json")
        return started, daemon

    yield ensure
    stop_private_engine(settings, run, lambda _: None, name=NAME)


def _kill(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


def test_killed_daemon_is_restarted(start: Start) -> None:
    _, first = start()
    _kill(first)
    engine, second = start()
    assert engine.version
    assert second != first


def test_stop_engine_after_kill(start: Start, paths: PrivateEnginePaths, unchanged: Unchanged) -> None:
    with unchanged():
        _, daemon = start()
        _kill(daemon)
        stop_private_engine(
            load_settings(), SubprocessRunner(dry_run_output=sys.stderr), lambda _: None, name=NAME
        )
    assert find_processes_by_argument(paths.runtime_dir) == []
    assert not paths.root.exists()
    assert not paths.runtime_dir.exists()
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert str(paths.root) not in mounts
    assert str(paths.runtime_dir) not in mounts
