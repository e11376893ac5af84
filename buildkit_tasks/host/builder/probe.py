"""Probe every platform on the node that builds it: a build step runs a minimal program.

This works for other machines too, whose binfmt_misc handlers cannot be read from here.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError, BuildkitTasksError
from buildkit_tasks.host.builder.assignment import assign_nodes
from buildkit_tasks.platforms.elf.probe import build_probe_program
from buildkit_tasks.report.model import PlatformSetup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuilderSummary
    from buildkit_tasks.system.command import CommandResult, CommandRunner

__all__ = ["probe_platforms"]

_PROBE_SECONDS = 120.0
_DOCKERFILE = 'FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /probe\nRUN --network=none ["/probe"]\n'


def probe_platforms(
    builder: BuilderSummary, platforms: Sequence[Platform], engine: Engine, commands: CommandRunner
) -> tuple[PlatformSetup, ...]:
    """Return how each platform is built, and whether its program ran."""
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as directory, ThreadPoolExecutor(4) as pool:
        folder = Path(directory)
        (folder / "Dockerfile").write_text(_DOCKERFILE, encoding="utf-8")
        for platform in platforms:
            path = folder / platform.architecture
            path.write_bytes(build_probe_program(platform.machine, 0))
            path.chmod(0o755)
        try:
            return tuple(
                pool.map(lambda each: _probe_platform(each, builder, folder, engine, commands), platforms)
            )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.interrupt()
            raise


def _probe_platform(
    platform: Platform, builder: BuilderSummary, folder: Path, engine: Engine, commands: CommandRunner
) -> PlatformSetup:
    if commands.dry_run:
        _run_probe_build(platform, builder, folder, engine, commands)
        return PlatformSetup(platform=str(platform), native=False)
    try:
        (assignment,) = assign_nodes([platform], builder)
    except BuilderError as error:
        return PlatformSetup(platform=str(platform), native=False, message=error.message)
    try:
        result = _run_probe_build(platform, builder, folder, engine, commands)
        failure = "" if result.ok else _error_message(result)
    except BuildkitTasksError as error:
        failure = error.message
    return PlatformSetup(
        platform=str(platform),
        native=assignment.is_native,
        node=assignment.node,
        runs=not failure,
        message=f"its probe fails on node {assignment.node}: {failure}" if failure else "",
    )


def _run_probe_build(
    platform: Platform, builder: BuilderSummary, folder: Path, engine: Engine, commands: CommandRunner
) -> CommandResult:
    argv = [
        *engine.tools.buildx, "build", f"--builder={builder.name}", f"--platform={platform}",
        "--no-cache", "--provenance=false", "--output=type=cacheonly", "--progress=plain", "--", str(folder),
    ]  # fmt: skip
    return commands.run(argv, engine.command_options(timeout=_PROBE_SECONDS), mutates=True)


def _error_message(result: CommandResult) -> str:
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ") if errors else result.reason
