from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.process import Process
from tests.conftest import Unchanged
from tests.support.project import Project

NAME = "stale"


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, with the pid that a private engine had before."""
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


def _leave_state(paths: PrivateEnginePaths, pid: int) -> None:
    paths.root.mkdir(parents=True)
    paths.runtime_dir.mkdir(parents=True, exist_ok=True)
    paths.process_file.write_text(str(Process(pid=pid, start_time=1)), encoding="utf-8")
    (paths.runtime_dir / "docker.pid").write_text(str(pid), encoding="ascii")


def test_stop_with_recycled_pid(
    project: Project, other_process: subprocess.Popen[bytes], unchanged: Unchanged
) -> None:
    cache = project.folder.parent / "cache"
    _leave_state(PrivateEnginePaths(cache), other_process.pid)
    with unchanged():
        stopped = project.with_env(INVOKE_BUILDKIT_CACHE=str(cache)).json("stop-engine")
    assert stopped == {"schema_version": 1, "ok": True, "stopped": False}
    assert other_process.poll() is None


def test_stop_spares_reader_of_log(project: Project, unchanged: Unchanged) -> None:
    cache = project.folder.parent / "cache"
    paths = PrivateEnginePaths(cache)
    _leave_state(paths, 1)
    log = paths.runtime_dir / "something.log"
    log.touch()
    with unchanged(), subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.DEVNULL) as reader:
        project.with_env(INVOKE_BUILDKIT_CACHE=str(cache)).json("stop-engine")
        alive = reader.poll() is None
        reader.kill()
    assert alive


def test_start_with_recycled_pid(
    engine: Engine, other_process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    if engine.kind != "private":
        pytest.skip("the engine is not a private one")
    settings, run = load_settings(), SubprocessRunner(dry_run_output=sys.stderr)
    paths = PrivateEnginePaths(cache_folder(settings), NAME)
    _leave_state(paths, other_process.pid)
    assert tmp_path.is_dir()
    try:
        started = ensure_private_engine(settings, run, lambda _: None, name=NAME)
        assert started.version
    finally:
        stop_private_engine(settings, run, lambda _: None, name=NAME)
    assert other_process.poll() is None
    assert not paths.root.exists()
