from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.process import Process
from tests.support.project import Project


def test_daemon_outlives_tmpdir_of_task(engine: Engine, project: Project, tmp_path: Path) -> None:
    if engine.kind != "private":
        pytest.skip("the engine is not a private one")
    cache, job_tmp = tmp_path / "cache", tmp_path / "job"
    for directory in (cache, job_tmp):
        directory.mkdir()
    (cache / "debian").symlink_to(cache_folder(load_settings()) / "debian")
    user = project.with_env(INVOKE_BUILDKIT_CACHE=str(cache))
    try:
        user.with_env(TMPDIR=str(job_tmp)).task("setup-builder", "--platform=linux/amd64")
        shutil.rmtree(job_tmp)
        daemon = Process.parse(PrivateEnginePaths(cache).process_file.read_text(encoding="utf-8"))
        assert daemon is not None
        assert _tmpdir(daemon).is_dir()
    finally:
        user.task("stop-engine")


def _tmpdir(process: Process) -> Path:
    environ = Path(f"/proc/{process.pid}/environ").read_bytes()
    variables = dict(line.split(b"=", 1) for line in environ.split(b"\0") if line)
    return Path(os.fsdecode(variables[b"TMPDIR"]))
