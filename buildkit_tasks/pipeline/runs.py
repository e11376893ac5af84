"""Runs of images under the settings; an engine is asked only where one is needed.

Imports little: an image in a file is run in the sandbox without a word about engines.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.host.emulation.qemu import Qemu
from buildkit_tasks.run.service import Runners, RunRequest, Watch, run_emulated, takes_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.pipeline.pipeline import Line
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunReport
    from buildkit_tasks.run.backend import Guests
    from buildkit_tasks.system.command import Runner
    from buildkit_tasks.system.notify import Tell

__all__ = ["Runs", "Watch"]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs images; ``line`` gives the services for those that need an engine."""

    settings: Settings
    run: Runner
    tell: Tell
    images: Images
    line: Callable[[], Line]

    def emulate(
        self, image: str, platforms: tuple[Platform, ...] = (), watch: Watch | None = None
    ) -> RunReport:
        """Run the image on each platform and check what it prints, as the settings say.

        Empty ``platforms`` means all that it holds; ``watch`` is told of each run as it ends.
        """
        name = self.images.name(image)
        request = RunRequest.of(name, platforms, self.settings)
        if self.run.dry_run:
            return self._show(request)
        runners = Runners(
            choice=self.settings.runner,
            sandbox=lambda: self._sandbox(name),
            docker=lambda: self.line().containers(name, platforms),
            tell=self.tell,
        )
        return run_emulated(request, runners, watch)

    @contextmanager
    def _sandbox(self, name: str) -> Iterator[Guests]:
        from buildkit_tasks.run.sandbox.supervisor import Warden

        with ThreadPoolExecutor(max_workers=1) as aside:
            started = aside.submit(Warden)  # a process that starts while the rest is imported here
            from buildkit_tasks.run.sandbox.backend import sandbox_guests

            qemu = Qemu(settings=self.settings, run=self.run, tell=self.tell)
            with sandbox_guests(name, started, self.images.open, qemu) as guests:
                yield guests

    def _show(self, request: RunRequest) -> RunReport:
        from buildkit_tasks.run.dry_run import show_containers, show_sandbox

        if takes_engine(self.settings.runner, request.image):
            return show_containers(request, self.line().engine, self.run)
        return show_sandbox(request, self.images.open, self.run)
