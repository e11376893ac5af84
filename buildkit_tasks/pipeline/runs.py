"""Run images under the settings; an engine is looked for only if a run needs it.

Imports little: an image in a file is run in the sandbox without importing anything of an engine.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.host.emulation.qemu import QemuFinder
from buildkit_tasks.run.service import BackendSelector, RunObserver, RunRequest, needs_engine, run_emulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.host.engine import Engine
    from buildkit_tasks.pipeline.images import ImageResolver
    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.report.model import RunReport
    from buildkit_tasks.run.backend import RunBackend
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["ImageRunner", "RunObserver"]


@dataclass(frozen=True, kw_only=True)
class ImageRunner:
    """Runs images in the sandbox or in a Docker engine, as ``settings.runner`` says.

    ``resolver`` opens the images. ``get_engine`` and ``open_containers`` (of an image, for some platforms)
    are called only for a run that needs an engine.
    """

    settings: Settings
    commands: CommandRunner
    notify: Notify
    resolver: ImageResolver
    get_engine: Callable[[], Engine]
    open_containers: Callable[[str, tuple[Platform, ...]], AbstractContextManager[RunBackend]]

    def run_image(
        self, image: str, platforms: tuple[Platform, ...] = (), observer: RunObserver | None = None
    ) -> RunReport:
        """Run an image on each platform and check its output and exit status as the settings say.

        An empty ``image`` is the last one built here; empty ``platforms`` means all that the image has.
        ``observer`` is called with each result as soon as its run has ended. A run that fails is part of
        the report. Raises :class:`UsageError` for a check that is not valid, :class:`EngineError` or
        :class:`EmulatorError` if nothing here can run the image.
        """
        name = image or self.resolver.last_image.require_manifests()
        request = RunRequest.from_settings(name, platforms, self.settings)
        if self.commands.dry_run:
            return self._show_dry_run(request)
        backends = BackendSelector(
            runner=self.settings.runner,
            open_sandbox=lambda: self._open_sandbox_backend(name),
            open_docker=lambda: self.open_containers(name, platforms),
            notify=self.notify,
            check_cpu=self.check_cpu,
        )
        return run_emulated(request, backends, observer)

    def check_cpu(self, platforms: Iterable[Platform]) -> None:
        """Raise :class:`UsageError` if QEMU has no such CPU model as the settings request for a platform."""
        from buildkit_tasks.run.cpu_models import check_cpu_model

        check_cpu_model(self.settings, platforms, self._find_qemu, self.commands)

    def _find_qemu(self, machine: Machine) -> Path | None:
        """Return the QEMU that would run a machine's programs; None if it is not on this host.

        An engine on this host may have another one than the sandbox: that of the kernel's handler.
        """
        if self.settings.runner == "docker":
            from buildkit_tasks.host.emulation.emulators import EmulatorManager

            emulators = EmulatorManager.for_host(self.settings, self.commands, self.notify)
            handler = emulators.handler_table.effective_handler(machine)
            if handler is not None:
                return Path(handler.interpreter)
        return self._qemu_finder.find(machine)

    @property
    def _qemu_finder(self) -> QemuFinder:
        return QemuFinder(settings=self.settings, commands=self.commands, notify=self.notify)

    @contextmanager
    def _open_sandbox_backend(self, name: str) -> Iterator[RunBackend]:
        from buildkit_tasks.run.sandbox.supervisor import Supervisor

        with ThreadPoolExecutor(max_workers=1) as start_pool:
            supervisor = start_pool.submit(Supervisor)  # starts its process during the next import
            from buildkit_tasks.run.sandbox.backend import open_sandbox_backend

            with open_sandbox_backend(name, supervisor, self.resolver.open, self._qemu_finder) as backend:
                yield backend

    def _show_dry_run(self, request: RunRequest) -> RunReport:
        from buildkit_tasks.run.dry_run import show_docker_commands, show_sandbox_commands

        if needs_engine(self.settings.runner, request.image):
            return show_docker_commands(request, self.get_engine(), self.commands)
        return show_sandbox_commands(request, self.resolver.open, self.commands)
