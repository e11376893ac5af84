"""Probe an engine whose kernel is not this one: run each platform's tiny program in a container."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from buildkit_tasks.errors import DeadlineExceeded
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, probe_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import Runner

__all__ = ["install_with_image", "runs_in_containers"]

_PROBE_SECONDS = 30.0
_PULL_SECONDS = 120.0
_INSTALLER = "tonistiigi/binfmt"


def runs_in_containers(engine: Engine, platforms: Iterable[Platform], run: Runner) -> dict[Platform, str]:
    """For each platform the words why its program does not run there; empty where it does."""
    wanted = list(platforms)
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda platform: _failure(engine, platform, run), wanted)
        return dict(zip(wanted, found, strict=True))


def install_with_image(engine: Engine, platforms: Iterable[Platform], run: Runner) -> str:
    """Let the binfmt image register emulators in the engine's kernel; gives its complaint, if any.

    Its exit status proves nothing (it may log a failure and exit 0): probe afterwards.
    """
    names = ",".join(sorted({platform.architecture for platform in platforms}))
    argv = [*engine.tools.docker, "run", "--rm", "--privileged", _INSTALLER, "--install", names]
    done = run.run(argv, engine.call(timeout=_PULL_SECONDS), mutates=True)
    return "" if done.ok else done.reason


def _failure(engine: Engine, platform: Platform, run: Runner) -> str:
    reference = f"buildkit-tasks/probe:{platform.slug}-{os.getpid()}"
    docker = engine.tools.docker
    imported = [*docker, "import", f"--platform={platform}", '--change=ENTRYPOINT ["/probe"]', "-", reference]
    done = run.run(imported, engine.call(stdin=_archive(platform), timeout=_PROBE_SECONDS), mutates=True)
    if not done.ok:
        return done.reason
    try:
        argv = [*docker, "run", "--rm", "--network=none", f"--platform={platform}", reference]
        done = run.run(argv, engine.call(timeout=_PROBE_SECONDS), mutates=True)
    except DeadlineExceeded as error:
        return error.message
    finally:
        run.run([*docker, "rmi", "--force", reference], engine.call(timeout=_PROBE_SECONDS), mutates=True)
    return "" if run.dry_run or done.returncode == PROBE_STATUS else done.reason


def _archive(platform: Platform) -> bytes:
    program = probe_program(platform.machine)
    member = tarfile.TarInfo("probe")
    member.mode, member.size = 0o755, len(program)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO(program))
    return buffer.getvalue()
