"""Probe an engine whose kernel is not this one: run each platform's tiny program in a container."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from buildkit_tasks.errors import DeadlineExceeded
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["install_emulators", "probe_in_containers"]

_PROBE_SECONDS = 30.0
_PULL_SECONDS = 120.0
_INSTALLER_IMAGE = "tonistiigi/binfmt"


def probe_in_containers(
    engine: Engine, platforms: Iterable[Platform], commands: CommandRunner
) -> dict[Platform, str]:
    """For each platform the words why its program does not run there; empty where it does."""
    probed = list(platforms)
    with ThreadPoolExecutor(max_workers=4) as pool:
        failures = pool.map(lambda platform: _probe_in_container(engine, platform, commands), probed)
        return dict(zip(probed, failures, strict=True))


def install_emulators(engine: Engine, platforms: Iterable[Platform], commands: CommandRunner) -> str:
    """Let the binfmt image register emulators in the engine's kernel; gives its complaint, if any.

    Its exit status proves nothing (it may log a failure and exit 0): probe afterwards.
    """
    names = ",".join(sorted({platform.architecture for platform in platforms}))
    argv = [*engine.tools.docker, "run", "--rm", "--privileged", _INSTALLER_IMAGE, "--install", names]
    result = commands.run(argv, engine.command_options(timeout=_PULL_SECONDS), mutates=True)
    return "" if result.ok else result.reason


def _probe_in_container(engine: Engine, platform: Platform, commands: CommandRunner) -> str:
    reference = f"buildkit-tasks/probe:{platform.slug}-{os.getpid()}"
    docker = engine.tools.docker
    import_argv = [
        *docker,
        "import",
        f"--platform={platform}",
        '--change=ENTRYPOINT ["/probe"]',
        "-",
        reference,
    ]
    result = commands.run(
        import_argv, engine.command_options(stdin=_pack_probe(platform), timeout=_PROBE_SECONDS), mutates=True
    )
    if not result.ok:
        return result.reason
    try:
        argv = [*docker, "run", "--rm", "--network=none", f"--platform={platform}", reference]
        result = commands.run(argv, engine.command_options(timeout=_PROBE_SECONDS), mutates=True)
    except DeadlineExceeded as error:
        return error.message
    finally:
        commands.run(
            [*docker, "rmi", "--force", reference],
            engine.command_options(timeout=_PROBE_SECONDS),
            mutates=True,
        )
    return "" if commands.dry_run or result.returncode == PROBE_STATUS else result.reason


def _pack_probe(platform: Platform) -> bytes:
    program = build_probe_program(platform.machine)
    member = tarfile.TarInfo("probe")
    member.mode, member.size = 0o755, len(program)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO(program))
    return buffer.getvalue()
