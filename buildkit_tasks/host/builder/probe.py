"""Every platform proved on the node that builds it: a build of which one step runs a tiny program.

Emulators of another machine cannot be looked at from here. What runs in a build there, runs.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError, BuildkitTasksError
from buildkit_tasks.host.builder.assignment import assign
from buildkit_tasks.platforms.elf.probe import probe_program
from buildkit_tasks.report.model import PlatformSetup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuilderSummary
    from buildkit_tasks.system.command import Completed, Runner

__all__ = ["prove"]

_SECONDS = 120.0
_DOCKERFILE = 'FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /probe\nRUN --network=none ["/probe"]\n'


def prove(
    builder: BuilderSummary, platforms: Sequence[Platform], engine: Engine, run: Runner
) -> tuple[PlatformSetup, ...]:
    """How each platform is built, and whether a program of it ran there just now."""
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as place, ThreadPoolExecutor(4) as pool:
        folder = Path(place)
        (folder / "Dockerfile").write_text(_DOCKERFILE, encoding="utf-8")
        for platform in platforms:
            path = folder / platform.architecture
            path.write_bytes(probe_program(platform.machine, 0))
            path.chmod(0o755)
        try:
            return tuple(pool.map(lambda each: _row(each, builder, folder, engine, run), platforms))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            run.interrupt()
            raise


def _row(
    platform: Platform, builder: BuilderSummary, folder: Path, engine: Engine, run: Runner
) -> PlatformSetup:
    if run.dry_run:
        _build(platform, builder, folder, engine, run)
        return PlatformSetup(platform=str(platform), native=False)
    try:
        (found,) = assign([platform], builder)
    except BuilderError as error:
        return PlatformSetup(platform=str(platform), native=False, message=error.message)
    try:
        done = _build(platform, builder, folder, engine, run)
        message = "" if done.ok else f"its program does not run on node {found.node}: {_words(done)}"
    except BuildkitTasksError as error:
        message = f"its program does not run on node {found.node}: {error.message}"
    return PlatformSetup(
        platform=str(platform), native=found.native, node=found.node, runs=not message, message=message
    )


def _build(
    platform: Platform, builder: BuilderSummary, folder: Path, engine: Engine, run: Runner
) -> Completed:
    argv = [
        *engine.tools.buildx, "build", f"--builder={builder.name}", f"--platform={platform}",
        "--no-cache", "--provenance=false", "--output=type=cacheonly", "--progress=plain", "--", str(folder),
    ]  # fmt: skip
    return run.run(argv, engine.call(timeout=_SECONDS), mutates=True)


def _words(done: Completed) -> str:
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ") if errors else done.reason
