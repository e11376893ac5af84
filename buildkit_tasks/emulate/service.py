"""Run an image on every platform asked for, several at once."""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from buildkit_tasks.emulate.docker import Guest, reap, run_guest
from buildkit_tasks.emulate.loading import Loaded, image_in_engine
from buildkit_tasks.emulate.outcomes import Expectation
from buildkit_tasks.emulators import Emulators, with_versions
from buildkit_tasks.engine.sdk import connect
from buildkit_tasks.errors import UsageError
from buildkit_tasks.results import Outcome, PlatformSetup, RunReport, RunResult
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.engine.daemon import Engine
    from collections.abc import Sequence

__all__ = ["RunRequest", "run_emulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Which image to run, where, and what it must do; ``timeout`` in seconds for each platform."""

    image: str
    platforms: tuple[Platform, ...] = ()
    command: str = ""
    expectation: Expectation = Expectation()
    timeout: float = 60.0
    jobs: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """The command as a list; it replaces CMD, as arguments of ``docker run`` do."""
        try:
            return tuple(shlex.split(self.command))
        except ValueError as error:
            raise UsageError(f"--command {self.command!r} cannot be split into words: {error}") from error


def run_emulated(request: RunRequest, engine: Engine, emulators: Emulators) -> RunReport:
    """Run the image on each platform, at most ``jobs`` at once (0: two for each processor).

    One platform's failure does not stop the others; results are in the order asked for.
    """
    words = request.words
    client = connect(engine)
    reap(client)
    with image_in_engine(request.image, request.platforms, engine, client) as images:
        wanted = request.platforms or tuple(images)
        setups = with_versions(emulators.ensure(wanted), emulators.run)

        def one(platform: Platform, setup: PlatformSetup) -> RunResult:
            image = images.get(platform)
            if image is None:
                return _missing(platform, images)
            guest = Guest(
                platform=platform,
                image=image,
                setup=setup,
                command=words,
                expectation=request.expectation,
                timeout=request.timeout,
            )
            return (
                run_guest(client, guest)
                if setup.runs
                else guest.result(Outcome.NOT_REGISTERED, setup.message)
            )

        with ThreadPoolExecutor(max_workers=request.jobs or 2 * (os.cpu_count() or 1)) as pool:
            results = tuple(pool.map(one, wanted, setups))
    return RunReport(subject=request.image, results=results)


def _missing(platform: Platform, images: dict[Platform, Loaded] | Sequence[Platform]) -> RunResult:
    held = ", ".join(map(str, images)) or "no platform"
    return RunResult(
        platform=str(platform),
        outcome=Outcome.FAILED,
        message=f"{platform} is not in the image, which holds {held}",
    )
