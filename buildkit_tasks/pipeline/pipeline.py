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
from buildkit_tasks.build.execute import BuildExecution
from buildkit_tasks.build.multi_node import MultiNodeBuild, needs_multi_node
from buildkit_tasks.build.outputs import OutputSpec, make_archive_name
from buildkit_tasks.build.request import BuildRequest, check_request, read_base_images, set_epoch
from buildkit_tasks.build.standin_bases import BasePlan, StandInBases, plan_bases
from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.host.builder import BuilderManager, is_remote, probe_platforms, require_index
from buildkit_tasks.host.emulation.emulators import EmulatorManager, add_versions, require_emulators
from buildkit_tasks.host.engine import Engine, ensure_clients, ensure_engine, find_engine
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.runs import ImageRunner
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import (
    BuilderSummary,
    BuildResult,
    MatrixReport,
    Output,
    RunReport,
    SetupReport,
)
from buildkit_tasks.system.reachability import is_registry_reachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.runs import RunObserver
    from buildkit_tasks.run.backend import RunBackend
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["Pipeline"]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One invocation: settings, the runner, and where to tell the user what goes on."""

    settings: Settings
    commands: CommandRunner
    notify: Notify

    @cached_property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms asked for. Raises :class:`UsageError` with the nearest name for a typo."""
        return parse_platforms(self.settings.platforms)

    @cached_property
    def engine(self) -> Engine:
        """The engine, started if need be."""
        return ensure_engine(self.settings, self.commands, self.notify)

    @cached_property
    def client_engine(self) -> Engine:
        """The engine whose client programs drive the builder; none is needed for a BuildKit elsewhere."""
        if self._is_remote:
            return ensure_clients(self.settings, self.commands, self.notify)
        return self.engine

    @cached_property
    def emulators(self) -> EmulatorManager:
        """The emulators of that engine."""
        return EmulatorManager(
            engine=self.engine, settings=self.settings, commands=self.commands, notify=self.notify
        )

    def with_settings(self, settings: Settings) -> Pipeline:
        """A line of the same engine, which is not asked again, for other settings."""
        pipeline = replace(self, settings=settings)
        self.client_engine  # noqa: B018 - connects
        vars(pipeline).update(
            {name: vars(self)[name] for name in ("client_engine", "engine") if name in vars(self)}
        )
        return pipeline

    def setup(self, *, recreate: bool = False, keep_state: bool = False) -> SetupReport:
        """Make engine, emulators and builder ready, and prove it by running a program for each platform."""
        platforms = self.platforms
        rows = () if self._is_remote else self.emulators.ensure(platforms, recreate=recreate)
        builder = self.builders.ensure(
            platforms,
            lambda: is_registry_reachable(self.client_engine.mirrors),
            recreate=recreate,
            keep_state=keep_state,
        )
        if len(platforms) > 1:
            require_index(builder, self.client_engine)
        if self._is_remote or len(builder.nodes) > 1:
            rows = probe_platforms(builder, platforms, self.client_engine, self.commands)
        else:
            node = builder.nodes[0].name if builder.nodes else ""
            rows = tuple(replace(row, node=node) for row in add_versions(rows, self.commands))
        return SetupReport(engine=self.client_engine.summary, builder=builder, platforms=rows)

    @cached_property
    def _is_remote(self) -> bool:
        """Whether the builder's emulators are other machines' affair."""
        return is_remote(self.settings)

    def build(self, request: BuildRequest) -> BuildResult:
        """Build on what is there, or is made ready; remembers the image for the next steps."""
        check_request(request)
        request = set_epoch(request, self.commands, self.notify)
        with ThreadPoolExecutor(max_workers=1) as pool:
            # Asked while the probes run: the answer may take seconds.
            is_reachable = pool.submit(is_registry_reachable, self.client_engine.mirrors).result
            if not self._is_remote and not self.settings.nodes:
                rows = self.emulators.ensure(request.platforms)
                if not self.commands.dry_run:
                    require_emulators(rows)
            builder = self.builders.ensure(request.platforms, is_reachable)
            check_capabilities(request, self.client_engine, builder)
            base_plan = self._plan_bases(request, builder, is_reachable)
        result = self._execute_build(request, builder, base_plan)
        if not self.commands.dry_run:
            self.resolver.record_last_built(result)
        return result

    def _execute_build(
        self, request: BuildRequest, builder: BuilderSummary, base_plan: BasePlan
    ) -> BuildResult:
        execution = BuildExecution(
            request=request,
            engine=self.client_engine,
            builder=builder,
            base_plan=base_plan,
            commands=self.commands,
            notify=self.notify,
        )
        if not needs_multi_node(builder, request.platforms):
            return execution.execute()
        fallback = self.settings.fallback == "emulate"
        return MultiNodeBuild(
            build=execution, drop_nodes=self.builders.node_manager.drop_nodes, fallback=fallback
        ).execute()

    def release_build(
        self, request: BuildRequest, result: BuildResult, observer: RunObserver | None = None
    ) -> BuildResult:
        """Prove what a build has pushed, where it lies and by its digest, and let its tags name it.

        A split build's part is left without a name. Where a proof fails no tag moves.
        """
        from buildkit_tasks.oci.model import Digest
        from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec

        push_outputs = [output for output in request.outputs if output.is_pushed]
        tags = [name for output in push_outputs for name in output.names or request.tags]
        if not tags or request.split:
            return result
        if self.commands.dry_run:
            condition = "once its digest is verified and has run" if request.verify_first else "without proof"
            self.notify(f"would name it {', '.join(tags)}, {condition}")
            return result
        spec = ReleaseSpec.from_tags(tags, request.platforms, verify_first=request.verify_first)
        service = ReleaseService(resolver=self.resolver, image_runner=self.image_runner)
        pushed = service.verify_and_tag(
            Digest(result.digest), result.platforms, spec, time.monotonic(), observer
        )
        tag_outputs = (Output(type="registry", ref=tag.ref) for tag in pushed.tags)
        other_outputs = tuple(output for output in result.outputs if output.type not in ("registry", "image"))
        return replace(
            result,
            outputs=(*other_outputs, *tag_outputs) if pushed.tags else result.outputs,
            ok=pushed.ok,
            pushed=pushed,
            seconds=round(result.seconds + pushed.seconds, 3),
        )

    def create_request(self, **options: Any) -> BuildRequest:
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
        return request if request.outputs or request.load else _add_dist_archive(request)

    def run_image(
        self, image: str, platforms: tuple[Platform, ...] = (), observer: RunObserver | None = None
    ) -> RunReport:
        """Run the image on each platform and check what it prints, as the settings say."""
        return self.image_runner.run_image(image, platforms, observer)

    def open_container_backend(
        self, image: str, platforms: tuple[Platform, ...]
    ) -> AbstractContextManager[RunBackend]:
        """The image in the engine, ready to be run."""
        with ThreadPoolExecutor(max_workers=1) as import_pool:
            import_pool.submit(importlib.import_module, "docker")  # 120 ms, while the engine is asked
            self.engine  # noqa: B018 - connects
        from buildkit_tasks.run.docker.backend import open_docker_backend

        return open_docker_backend(image, platforms, self.engine, self.emulators, self.resolver.open)

    @cached_property
    def image_runner(self) -> ImageRunner:
        """What runs images here."""
        return ImageRunner(
            settings=self.settings,
            commands=self.commands,
            notify=self.notify,
            resolver=self.resolver,
            get_engine=lambda: self.engine,
            open_containers=self.open_container_backend,
        )

    def run_matrix(
        self, request: BuildRequest, observer: RunObserver | None = None
    ) -> tuple[MatrixReport, BuildkitTasksError | None]:
        """All four steps. One that cannot go on ends the line: what was reached, and the error."""
        report = MatrixReport()
        if not any(output.type == "oci" and output.is_file for output in request.outputs):
            request = _add_dist_archive(request)  # the next steps read it
        try:
            check_request(request)
            setup = self.setup()
            report = replace(report, setup=setup)
            if not self.commands.dry_run:
                require_emulators(setup.platforms)
            build_result = self.build(request)
            report = replace(report, build=build_result)
            release_result = self.release_build(request, build_result, observer)
            # The build held, whatever comes of the proof: that has rows of its own.
            report = replace(report, build=replace(release_result, ok=True))
            if self.commands.dry_run:
                return report, None  # there is no image to verify and to run
            if release_result.pushed is not None and release_result.pushed.verify is not None:
                return replace(
                    report, verify=release_result.pushed.verify, run=release_result.pushed.run
                ), None
            report = replace(report, verify=self.resolver.verify("", request.platforms))
            report = replace(report, run=self.run_image("", request.platforms, observer))
        except BuildkitTasksError as error:
            return replace(report, error=str(error)), error
        return report, None

    def remove_builder(self, *, keep_state: bool) -> list[str]:
        """Remove the builder by the settings' name and the handlers that we added; gives their names.

        No engine is started for it: a builder that is not reached now was not made on one that runs.
        """
        local_emulators = EmulatorManager.for_host(self.settings, self.commands, self.notify)
        removed = [f"handler {name}" for name in local_emulators.handler_table.remove_registered()]
        engine = self.client_engine if self._is_remote else find_engine(self.settings, self.commands)
        if isinstance(engine, Engine):
            builders = BuilderManager(
                engine=engine, settings=self.settings, commands=self.commands, notify=self.notify
            )
            if builders.remove(self.settings.name, keep_state=keep_state):
                removed.append(f"builder {self.settings.name}")
        return removed

    @cached_property
    def resolver(self) -> ImageResolver:
        """The images that can be named here."""
        return ImageResolver(settings=self.settings, commands=self.commands)

    @cached_property
    def builders(self) -> BuilderManager:
        """The builders of that engine."""
        return BuilderManager(
            engine=self.client_engine, settings=self.settings, commands=self.commands, notify=self.notify
        )

    def _plan_bases(
        self, request: BuildRequest, builder: BuilderSummary, is_reachable: Callable[[], bool]
    ) -> BasePlan:
        stand_ins = StandInBases(
            engine=self.client_engine,
            builder=builder.name,
            settings=self.settings,
            commands=self.commands,
            notify=self.notify,
            multi_node=len(builder.nodes) > 1,
        )
        bases = read_base_images(request)
        return plan_bases(bases, self.settings.bases, is_reachable, stand_ins, request.platforms)


def _add_dist_archive(request: BuildRequest) -> BuildRequest:
    """The request with an OCI archive in ``dist`` as one more output."""
    dest = f"dist/{make_archive_name(request.tags, request.context)}"
    archive = OutputSpec(type="oci", attributes=(("dest", dest),))
    return replace(request, outputs=(archive, *request.outputs))
