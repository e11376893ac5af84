"""Run an image in the Docker engine: the image brought in, and each task a container."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import APIError

from buildkit_tasks.host.emulation.emulators import Emulators, with_versions
from buildkit_tasks.host.engine.sdk import connect
from buildkit_tasks.report.model import Outcome, PlatformSetup, RunResult
from buildkit_tasks.run.docker.container import LABEL, Guest, reap, run_guest
from buildkit_tasks.run.docker.load import Loaded, image_in_engine
from buildkit_tasks.system.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.backend import GuestTask, OpenImage

__all__ = ["container_guests"]


@contextlib.contextmanager
def container_guests(
    name: str, platforms: Sequence[Platform], engine: Engine, emulators: Emulators, open_image: OpenImage
) -> Iterator[ContainerGuests]:
    """An image in the engine, ready to be run; what was loaded for it is removed afterwards.

    Empty ``platforms`` means all that the image holds.
    """
    with ThreadPoolExecutor(max_workers=1) as aside:
        # Platforms are probed while the image is found or loaded: neither needs the other.
        early = aside.submit(_setups, platforms, emulators)
        client = connect(engine)
        reap(client)
        with image_in_engine(name, platforms, engine, client, open_image) as images:
            setups = early.result() if platforms else _setups(tuple(images), emulators)
            yield ContainerGuests(client=client, images=images, setups=setups)


@dataclass(frozen=True, kw_only=True)
class ContainerGuests:
    """The platforms of one image in the engine."""

    client: DockerClient
    images: dict[Platform, Loaded]
    setups: Sequence[PlatformSetup]
    runner: str = "docker"

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms that the image holds."""
        return tuple(self.images)

    def run(self, task: GuestTask) -> RunResult:
        """Run one task in a container of its own."""
        setup = next(row for row in self.setups if row.platform == str(task.platform))
        if not setup.runs:
            return task.result(Outcome.NOT_REGISTERED, setup.message)
        return run_guest(self.client, Guest(task=task, image=self.images[task.platform], setup=setup))

    def stop(self) -> None:
        """Kill our containers; whoever runs them removes them."""
        for each in self.client.api.containers(filters={"label": f"{LABEL}={Process.of(os.getpid())}"}):
            with contextlib.suppress(APIError):  # it has just ended
                self.client.api.kill(each["Id"])


def _setups(platforms: Sequence[Platform], emulators: Emulators) -> tuple[PlatformSetup, ...]:
    known = [platform for platform in platforms if platform.is_known]
    return with_versions(emulators.ensure(known), emulators.run) if known else ()
