"""Probe platforms in containers, for an engine that runs on another kernel."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import DeadlineExceeded
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import CommandResult, CommandRunner

__all__ = ["install_emulators", "probe_in_containers"]

_PROBE_SECONDS = 30.0
_PULL_SECONDS = 120.0
_INSTALLER_IMAGE = "tonistiigi/binfmt"


def probe_in_containers(
    engine: Engine, platforms: Iterable[Platform], commands: CommandRunner
) -> dict[Platform, str]:
    """Return why each platform's program does not run, or an empty string if it does."""
    platforms = list(platforms)
    with ThreadPoolExecutor(max_workers=4) as pool:
        failures = pool.map(lambda platform: _probe_in_container(engine, platform, commands), platforms)
        return dict(zip(platforms, failures, strict=True))


def install_emulators(engine: Engine, platforms: Iterable[Platform], commands: CommandRunner) -> str:
    """Register emulators in the engine's kernel with the binfmt image; return its error, if any.

    Probe afterwards: the image may log a failure and exit 0.
    """
    names = ",".join(sorted({platform.architecture for platform in platforms}))
    argv = [*engine.tools.docker, "run", "--rm", "--privileged", _INSTALLER_IMAGE, "--install", names]
    result = commands.run(argv, engine.command_options(timeout=_PULL_SECONDS), mutates=True)
    return "" if result.ok else result.reason


def _probe_in_container(engine: Engine, platform: Platform, commands: CommandRunner) -> str:
    reference = f"buildkit-tasks/probe:{platform.slug}-{os.getpid()}"

    def docker(*arguments: str, **options: Any) -> CommandResult:
        command_options = engine.command_options(timeout=_PROBE_SECONDS, **options)
        return commands.run([*engine.tools.docker, *arguments], command_options, mutates=True)

    on_platform = f"--platform={platform}"
    entrypoint = '--change=ENTRYPOINT ["/probe"]'
    result = docker("import", on_platform, entrypoint, "-", reference, stdin=_pack_probe(platform))
    if not result.ok:
        return result.reason
    try:
        result = docker("run", "--rm", "--network=none", on_platform, reference)
    except DeadlineExceeded as error:
        return error.message
    finally:
        docker("rmi", "--force", reference)
    return "" if commands.dry_run or result.returncode == PROBE_STATUS else result.reason


def _pack_probe(platform: Platform) -> bytes:
    program = build_probe_program(platform.machine)
    member = tarfile.TarInfo("probe")
    member.mode, member.size = 0o755, len(program)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO(program))
    return buffer.getvalue()
