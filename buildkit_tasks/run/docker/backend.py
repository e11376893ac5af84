"""The Docker runner's backend: the image is loaded into the engine, each task is a container."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import APIError

from buildkit_tasks.host.emulation.emulators import EmulatorManager, add_versions
from buildkit_tasks.host.engine.sdk import connect_client
from buildkit_tasks.report.model import Outcome, PlatformSetup, RunResult
from buildkit_tasks.run.docker.container import (
    OWNER_LABEL,
    ContainerRun,
    remove_stale_containers,
    run_container,
)
from buildkit_tasks.run.docker.load import LoadedImage, load_into_engine
from buildkit_tasks.system.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.backend import ImageOpener, RunTask

__all__ = ["open_docker_backend"]


@contextlib.contextmanager
def open_docker_backend(
    name: str,
    platforms: Sequence[Platform],
    engine: Engine,
    emulators: EmulatorManager,
    open_image: ImageOpener,
) -> Iterator[DockerBackend]:
    """Yield the backend for an image; remove what was loaded into the engine afterwards.

    ``platforms`` are those to be run; empty means all of the image.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        # The platforms are probed while the image is loaded.
        setups_future = executor.submit(_ensure_emulators, platforms, emulators)
        client = connect_client(engine)
        remove_stale_containers(client)
        with load_into_engine(name, platforms, engine, client, open_image) as images:
            setups = setups_future.result() if platforms else _ensure_emulators(tuple(images), emulators)
            yield DockerBackend(client=client, images=images, setups=setups)


@dataclass(frozen=True, kw_only=True)
class DockerBackend:
    """The platforms of one image in the engine."""

    client: DockerClient
    images: dict[Platform, LoadedImage]
    setups: Sequence[PlatformSetup]
    runner: str = "docker"

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms of the image."""
        return tuple(self.images)

    def run(self, task: RunTask) -> RunResult:
        """Run a task in a new container."""
        setup = next(candidate for candidate in self.setups if candidate.platform == str(task.platform))
        if not setup.runs:
            return task.make_result(Outcome.NOT_REGISTERED, setup.message)
        return run_container(
            self.client, ContainerRun(task=task, image=self.images[task.platform], setup=setup)
        )

    def stop(self) -> None:
        """Kill the containers of this process; the threads that run them remove them."""
        for each in self.client.api.containers(
            filters={"label": f"{OWNER_LABEL}={Process.from_pid(os.getpid())}"}
        ):
            with contextlib.suppress(APIError):  # it has just ended
                self.client.api.kill(each["Id"])


def _ensure_emulators(platforms: Sequence[Platform], emulators: EmulatorManager) -> tuple[PlatformSetup, ...]:
    known_platforms = [platform for platform in platforms if platform.is_known]
    return add_versions(emulators.ensure(known_platforms), emulators.commands) if known_platforms else ()
