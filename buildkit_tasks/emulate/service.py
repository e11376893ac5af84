"""Run an image on every platform asked for, several at once."""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.emulate.docker import Guest, as_command, reap, run_guest
from buildkit_tasks.emulate.loading import Loaded, image_in_engine
from buildkit_tasks.emulate.outcomes import Expectation
from buildkit_tasks.emulators import Emulators, with_versions
from buildkit_tasks.engine.sdk import connect
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.results import Outcome, PlatformSetup, RunReport, RunResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.commands import Runner
    from buildkit_tasks.emulate.loading import OpenImage
    from buildkit_tasks.engine.daemon import Engine

__all__ = ["RunRequest", "run_emulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Which image to run, where, and what it must do; ``timeout`` in seconds for each platform."""

    image: str
    platforms: tuple[Platform, ...] = ()
    command: str = ""
    expectation: Expectation = field(default_factory=Expectation)
    timeout: float = 60.0
    jobs: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """The command as a list; it replaces CMD, as arguments of ``docker run`` do."""
        try:
            return tuple(shlex.split(self.command))
        except ValueError as error:
            raise UsageError(f"--command {self.command!r} cannot be split into words: {error}") from error

    def guest(self, platform: Platform, image: Loaded, setup: PlatformSetup, words: tuple[str, ...]) -> Guest:
        """What to run on one platform."""
        return Guest(
            platform=platform,
            image=image,
            setup=setup,
            command=words,
            expectation=self.expectation,
            timeout=self.timeout,
        )


def run_emulated(
    request: RunRequest, engine: Engine, emulators: Emulators, open_image: OpenImage
) -> RunReport:
    """Run the image on each platform, at most ``jobs`` at once (0: two for each processor).

    ``open_image`` opens one that is not in the engine.

    One platform's failure does not stop the others; results are in the order asked for.
    """
    if emulators.run.dry_run:
        return _shown(request, engine, emulators.run)
    words = request.words
    with ThreadPoolExecutor(max_workers=1) as aside:
        # Platforms are probed while the image is found or loaded: neither needs the other.
        early = aside.submit(_setups, request.platforms, emulators)
        client = connect(engine)
        reap(client)
        with image_in_engine(request.image, request.platforms, engine, client, open_image) as images:
            setups = early.result() if request.platforms else _setups(tuple(images), emulators)

            def one(setup: PlatformSetup) -> RunResult:
                platform = Platform.parse(setup.platform)
                if platform not in images:
                    return _missing(platform, images)
                guest = request.guest(platform, images[platform], setup, words)
                if not setup.runs:
                    return guest.result(Outcome.NOT_REGISTERED, setup.message)
                return run_guest(client, guest)

            with ThreadPoolExecutor(max_workers=request.jobs or 2 * (os.cpu_count() or 1)) as pool:
                results = tuple(pool.map(one, setups))
    return RunReport(subject=request.image, results=results)


def _setups(platforms: Sequence[Platform], emulators: Emulators) -> tuple[PlatformSetup, ...]:
    return with_versions(emulators.ensure(platforms), emulators.run) if platforms else ()


def _shown(request: RunRequest, engine: Engine, run: Runner) -> RunReport:
    """Print the commands that do the same by hand; the image is loaded without a name, and so is IMAGE."""
    transport, _, place = request.image.partition(":")
    image = place if transport == "docker-daemon" else "IMAGE"
    if image == "IMAGE":
        run.run([*engine.tools.docker, "load", f"--input={place}"], engine.call(), mutates=True)
    for platform in request.platforms:
        argv = [*engine.tools.docker, *as_command(platform, image, request.words)]
        run.run(argv, engine.call(), mutates=True)
    return RunReport(subject=request.image, results=())


def _missing(platform: Platform, images: dict[Platform, Loaded] | Sequence[Platform]) -> RunResult:
    held = ", ".join(map(str, images)) or "no platform"
    return RunResult(
        platform=str(platform),
        outcome=Outcome.FAILED,
        message=f"{platform} is not in the image, which holds {held}",
    )
