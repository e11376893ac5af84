"""The line from settings to reports: one method for each arrow, frozen values between them.

``Settings -> Engine -> Builder -> BuildResult -> Image -> VerifyReport -> RunReport``: each step takes
what the earlier ones gave, and none reaches back.
"""

from __future__ import annotations

import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.build.execute import Build
from buildkit_tasks.build.multi_node import Fleet, needs_fleet
from buildkit_tasks.build.outputs import OutputSpec, archive_name
from buildkit_tasks.build.request import BuildRequest, check_request, read_request_bases, with_epoch
from buildkit_tasks.build.standin_bases import BasePlan, StandIns, plan_bases
from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.host.builder import Builders, is_elsewhere, prove, require_index
from buildkit_tasks.host.emulation.emulators import Emulators, require_emulators, with_versions
from buildkit_tasks.host.engine import Engine, ensure_clients, ensure_engine, existing_engine
from buildkit_tasks.pipeline.images import Images
from buildkit_tasks.pipeline.runs import Runs
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import (
    BuilderSummary,
    BuildResult,
    MatrixReport,
    Output,
    RunReport,
    SetupReport,
)
from buildkit_tasks.system.reachability import registry_answers

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.runs import Watch
    from buildkit_tasks.run.backend import Guests
    from buildkit_tasks.system.command import Runner
    from buildkit_tasks.system.notify import Tell

__all__ = ["Line"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One invocation: settings, the runner, and where to tell the user what goes on."""

    settings: Settings
    run: Runner
    tell: Tell

    @cached_property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms asked for. Raises :class:`UsageError` with the nearest name for a typo."""
        return parse_platforms(self.settings.platforms)

    @cached_property
    def engine(self) -> Engine:
        """The engine, started if need be."""
        return ensure_engine(self.settings, self.run, self.tell)

    @cached_property
    def clients(self) -> Engine:
        """The engine whose client programs drive the builder; none is needed for a BuildKit elsewhere."""
        if self._elsewhere:
            return ensure_clients(self.settings, self.run, self.tell)
        return self.engine

    @cached_property
    def emulators(self) -> Emulators:
        """The emulators of that engine."""
        return Emulators(engine=self.engine, settings=self.settings, run=self.run, tell=self.tell)

    def under(self, settings: Settings) -> Line:
        """A line of the same engine, which is not asked again, for other settings."""
        other = replace(self, settings=settings)
        self.clients  # noqa: B018 - connects
        vars(other).update({name: vars(self)[name] for name in ("clients", "engine") if name in vars(self)})
        return other

    def setup(self, *, recreate: bool = False, keep_state: bool = False) -> SetupReport:
        """Make engine, emulators and builder ready, and prove it by running a program for each platform."""
        platforms = self.platforms
        rows = () if self._elsewhere else self.emulators.ensure(platforms, recreate=recreate)
        builder = self.builders.ensure(
            platforms,
            lambda: registry_answers(self.clients.mirrors),
            recreate=recreate,
            keep_state=keep_state,
        )
        if len(platforms) > 1:
            require_index(builder, self.clients)
        if self._elsewhere or len(builder.nodes) > 1:
            rows = prove(builder, platforms, self.clients, self.run)
        else:
            node = builder.nodes[0].name if builder.nodes else ""
            rows = tuple(replace(row, node=node) for row in with_versions(rows, self.run))
        return SetupReport(engine=self.clients.summary, builder=builder, platforms=rows)

    @cached_property
    def _elsewhere(self) -> bool:
        """Whether the builder's emulators are other machines' affair."""
        return is_elsewhere(self.settings)

    def build(self, request: BuildRequest) -> BuildResult:
        """Build on what is there, or is made ready; remembers the image for the next steps."""
        check_request(request)
        request = with_epoch(request, self.run, self.tell)
        with ThreadPoolExecutor(max_workers=1) as pool:
            # Asked while the probes run: the answer may take seconds.
            answers = pool.submit(registry_answers, self.clients.mirrors).result
            if not self._elsewhere and not self.settings.nodes:
                rows = self.emulators.ensure(request.platforms)
                if not self.run.dry_run:
                    require_emulators(rows)
            builder = self.builders.ensure(request.platforms, answers)
            check_capabilities(request, self.clients, builder)
            plan = self._plan_bases(request, builder, answers)
        result = self._built(request, builder, plan)
        if not self.run.dry_run:
            self.images.remember(result)
        return result

    def _built(self, request: BuildRequest, builder: BuilderSummary, plan: BasePlan) -> BuildResult:
        job = Build(
            request=request, engine=self.clients, builder=builder, plan=plan, run=self.run, tell=self.tell
        )
        if not needs_fleet(builder, request.platforms):
            return job.result()
        fallback = self.settings.fallback == "emulate"
        return Fleet(build=job, without=self.builders.nodes.without, fallback=fallback).result()

    def release(self, request: BuildRequest, result: BuildResult, watch: Watch | None = None) -> BuildResult:
        """Prove what a build has pushed, where it lies and by its digest, and let its tags name it.

        A split build's part is left without a name. Where a proof fails no tag moves.
        """
        from buildkit_tasks.oci.model import Digest
        from buildkit_tasks.pipeline.release import Release, Releases

        pushing = [output for output in request.outputs if output.pushes]
        tags = [name for output in pushing for name in output.names or request.tags]
        if not tags or request.split:
            return result
        if self.run.dry_run:
            proof = "once its digest is verified and has run" if request.proved else "without proof"
            self.tell(f"would name it {', '.join(tags)}, {proof}")
            return result
        release = Release.of(tags, request.platforms, proved=request.proved)
        releases = Releases(images=self.images, runs=self.runs)
        pushed = releases.name(Digest(result.digest), result.platforms, release, time.monotonic(), watch)
        named = (Output(type="registry", ref=tag.ref) for tag in pushed.tags)
        outputs = tuple(output for output in result.outputs if output.type not in ("registry", "image"))
        return replace(
            result,
            outputs=(*outputs, *named) if pushed.tags else result.outputs,
            ok=pushed.ok,
            pushed=pushed,
            seconds=round(result.seconds + pushed.seconds, 3),
        )

    def request(self, **options: Any) -> BuildRequest:
        """A build request from the settings and more options; with no output, an archive in ``dist``."""
        settings = self.settings
        request = BuildRequest(
            platforms=self.platforms,
            context=settings.context,
            file=settings.file,
            tags=settings.tags,
            target=settings.target,
            build_args=settings.build_args,
            progress=settings.progress,
            allow=settings.allow,
            **options,
        )
        return request if request.outputs or request.load else _archived(request)

    def emulate(
        self, image: str, platforms: tuple[Platform, ...] = (), watch: Watch | None = None
    ) -> RunReport:
        """Run the image on each platform and check what it prints, as the settings say."""
        return self.runs.emulate(image, platforms, watch)

    def containers(self, image: str, platforms: tuple[Platform, ...]) -> AbstractContextManager[Guests]:
        """The image in the engine, ready to be run."""
        with ThreadPoolExecutor(max_workers=1) as aside:
            aside.submit(importlib.import_module, "docker")  # 120 ms, while the engine is asked
            self.engine  # noqa: B018 - connects
        from buildkit_tasks.run.docker.backend import container_guests

        return container_guests(image, platforms, self.engine, self.emulators, self.images.open)

    @cached_property
    def runs(self) -> Runs:
        """What runs images here."""
        return Runs(
            settings=self.settings, run=self.run, tell=self.tell, images=self.images, line=lambda: self
        )

    def matrix(
        self, request: BuildRequest, watch: Watch | None = None
    ) -> tuple[MatrixReport, BuildkitTasksError | None]:
        """All four steps. One that cannot go on ends the line: what was reached, and the error."""
        report = MatrixReport()
        if not any(output.type == "oci" and output.is_file for output in request.outputs):
            request = _archived(request)  # the next steps read it
        try:
            check_request(request)
            setup = self.setup()
            report = replace(report, setup=setup)
            if not self.run.dry_run:
                require_emulators(setup.platforms)
            built = self.build(request)
            report = replace(report, build=built)
            released = self.release(request, built, watch)
            # The build held, whatever comes of the proof: that has rows of its own.
            report = replace(report, build=replace(released, ok=True))
            if self.run.dry_run:
                return report, None  # there is no image to verify and to run
            if released.pushed is not None and released.pushed.verify is not None:
                return replace(report, verify=released.pushed.verify, run=released.pushed.run), None
            report = replace(report, verify=self.images.verify("", request.platforms))
            report = replace(report, run=self.emulate("", request.platforms, watch))
        except BuildkitTasksError as error:
            return replace(report, error=str(error)), error
        return report, None

    def remove(self, *, keep_state: bool) -> list[str]:
        """Remove the builder by the settings' name and the handlers that we added; gives their names.

        No engine is started for it: a builder that is not reached now was not made on one that runs.
        """
        here = Emulators.here(self.settings, self.run, self.tell)
        removed = [f"handler {name}" for name in here.table.remove_ours()]
        engine = self.clients if self._elsewhere else existing_engine(self.settings, self.run)
        if isinstance(engine, Engine):
            builders = Builders(engine=engine, settings=self.settings, run=self.run, tell=self.tell)
            if builders.remove(self.settings.name, keep_state=keep_state):
                removed.append(f"builder {self.settings.name}")
        return removed

    @cached_property
    def images(self) -> Images:
        """The images that can be named here."""
        return Images(settings=self.settings, run=self.run)

    @cached_property
    def builders(self) -> Builders:
        """The builders of that engine."""
        return Builders(engine=self.clients, settings=self.settings, run=self.run, tell=self.tell)

    def _plan_bases(
        self, request: BuildRequest, builder: BuilderSummary, answers: Callable[[], bool]
    ) -> BasePlan:
        stand_ins = StandIns(
            engine=self.clients,
            builder=builder.name,
            settings=self.settings,
            run=self.run,
            tell=self.tell,
            apart=len(builder.nodes) > 1,
        )
        bases = read_request_bases(request)
        return plan_bases(bases, self.settings.bases, answers, stand_ins, request.platforms)


def _archived(request: BuildRequest) -> BuildRequest:
    """The request with an OCI archive in ``dist`` as one more output."""
    dest = f"dist/{archive_name(request.tags, request.context)}"
    archive = OutputSpec(type="oci", attributes=(("dest", dest),))
    return replace(request, outputs=(archive, *request.outputs))
