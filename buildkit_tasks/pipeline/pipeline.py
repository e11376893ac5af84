"""The pipeline from settings to reports: one method for each step, frozen values between them.

::

    Settings -> Engine -> Builder -> BuildResult -> image -> VerifyReport -> RunReport

No step changes what an earlier step returned. A step imports what only it needs: an image in a file or a
registry is verified and run in the sandbox without importing anything of BuildKit or of the engine.
"""

from __future__ import annotations

import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import BuildkitTasksError, UsageError
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.last_build import RecordedImage, best_image_name, list_typed_options
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import MatrixReport, Output, SetupReport
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.notify import NotifyStream, log_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from buildkit_tasks.build.execute import BuildExecution, FrontendAnswer
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.build.standin_bases import BasePlan
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.host.builder import BuilderManager
    from buildkit_tasks.host.emulation.emulators import EmulatorManager
    from buildkit_tasks.host.engine import Engine
    from buildkit_tasks.pipeline.release import ReleaseService
    from buildkit_tasks.pipeline.runs import ImageRunner, RunObserver
    from buildkit_tasks.report.model import BuilderSummary, BuildResult, RunReport, VerifyReport
    from buildkit_tasks.run.backend import RunBackend
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["Pipeline"]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The steps of a multi-platform image under one set of settings: set up, build, verify, run, release.

    Creating a pipeline starts nothing. The first step that needs a Docker engine looks for one and, unless
    ``settings.engine`` is ``system``, starts a private one if no engine answers.

    ``commands`` runs every external program; if its ``dry_run`` is true, steps print their commands and
    change nothing. ``notify`` is called with each progress message, one line of text without a newline, also
    from other threads. By default the logger ``buildkit_tasks`` gets these messages and the output of buildx.
    ``image_name`` and ``parent`` are set by :meth:`with_settings`.

    Steps raise subclasses of :class:`BuildkitTasksError`: :class:`UsageError` for a request or a setting
    that is not valid; :class:`EngineError`, :class:`BuilderError` and :class:`EmulatorError` if the host
    lacks something; :class:`RegistryError`; :class:`LimitExceeded` for a full disk.
    """

    settings: Settings
    commands: CommandRunner = field(
        default_factory=lambda: SubprocessRunner(stream_output=NotifyStream(log_progress))
    )
    notify: Notify = log_progress
    image_name: str = ""
    parent: Pipeline | None = field(default=None, repr=False, compare=False)

    def with_settings(self, settings: Settings, image_name: str = "") -> Pipeline:
        """Return a pipeline under other settings, such as an image's, that uses this pipeline's engine.

        The engine is found once, under the settings of the first pipeline, whichever pipeline needs it
        first::

            web = pipeline.with_settings(web_settings)
            web.engine  # finds or starts the engine of `pipeline`
            pipeline.engine is web.engine  # True
        """
        return replace(self, settings=settings, image_name=image_name, parent=self)

    @cached_property
    def engine(self) -> Engine:
        """Return the engine; start it if necessary. Raises :class:`EngineError` if there is none."""
        if self.parent is not None:
            return self.parent.engine
        from buildkit_tasks.host.engine import ensure_engine

        return ensure_engine(self.settings, self.commands, self.notify)

    @cached_property
    def client_engine(self) -> Engine:
        """Return the engine whose ``docker`` and ``buildx`` programs control the builder.

        A builder on another machine needs only the programs: then no engine is started.
        """
        if self.parent is not None:
            return self.parent.client_engine
        if not self._is_remote:
            return self.engine
        from buildkit_tasks.host.engine import ensure_clients

        return ensure_clients(self.settings, self.commands, self.notify)

    @cached_property
    def _is_remote(self) -> bool:
        """Return True if the builder runs on another machine, whose emulators we cannot manage."""
        from buildkit_tasks.host.builder import is_remote

        return is_remote(self.settings)

    @cached_property
    def platforms(self) -> tuple[Platform, ...]:
        """Return the platforms of the settings. Raises :class:`UsageError` with the nearest known name."""
        return parse_platforms(self.settings.platforms)

    @cached_property
    def emulators(self) -> EmulatorManager:
        """Return the manager of the engine's emulators (binfmt_misc handlers)."""
        from buildkit_tasks.host.emulation.emulators import EmulatorManager

        return EmulatorManager(
            engine=self.engine, settings=self.settings, commands=self.commands, notify=self.notify
        )

    @cached_property
    def builders(self) -> BuilderManager:
        """Return the manager of the buildx builders that :attr:`client_engine` controls."""
        return self._create_builder_manager(self.client_engine)

    def _create_builder_manager(self, engine: Engine) -> BuilderManager:
        from buildkit_tasks.host.builder import BuilderManager

        return BuilderManager(
            engine=engine, settings=self.settings, commands=self.commands, notify=self.notify
        )

    @cached_property
    def resolver(self) -> ImageResolver:
        """Return what opens images by name, among them the last one built in this folder."""
        return ImageResolver(settings=self.settings, commands=self.commands)

    @cached_property
    def image_runner(self) -> ImageRunner:
        """Return what runs images, in the sandbox or in an engine."""
        from buildkit_tasks.pipeline.runs import ImageRunner

        return ImageRunner(
            settings=self.settings,
            commands=self.commands,
            notify=self.notify,
            resolver=self.resolver,
            get_engine=lambda: self.engine,
            open_containers=self._open_container_backend,
        )

    @cached_property
    def releases(self) -> ReleaseService:
        """Return what pushes images by digest, verifies them there, and then moves their tags."""
        from buildkit_tasks.pipeline.release import ReleaseService

        return ReleaseService(image_runner=self.image_runner)

    def setup(self, *, recreate: bool = False, keep_state: bool = False) -> SetupReport:
        """Make engine, emulators and builder ready, and prove it by running a program for each platform.

        Set-up is idempotent. ``recreate`` removes the builder and the emulators and makes them again;
        ``keep_state`` keeps the build cache of a builder that is recreated.
        """
        from buildkit_tasks.host.builder import probe_platforms, require_index
        from buildkit_tasks.host.emulation.emulators import add_versions
        from buildkit_tasks.host.emulation.qemu import qemu_prefix
        from buildkit_tasks.host.provisioned import renew_old_packages
        from buildkit_tasks.system.reachability import is_registry_reachable

        platforms = self.platforms
        renewed = renew_old_packages(self.settings, self.commands, self.notify)
        if qemu_prefix(self.settings) in renewed and not self._is_remote:
            self.emulators.remove_handlers(qemu_prefix(self.settings))
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

    def create_request(self, **options: Any) -> BuildRequest:
        """Return a build request from the settings and more fields of :class:`BuildRequest`.

        Without an output, the image is written to an OCI archive in ``dist/``. If the Dockerfile is "-",
        it is read from standard input.
        """
        from buildkit_tasks.build.request import (
            STANDARD_INPUT,
            BuildRequest,
            drop_outputs,
            read_dockerfile_from_stdin,
        )

        settings = self.settings
        request = BuildRequest(
            platforms=self.platforms,
            context=settings.context,
            file=settings.file,
            dockerfile_text=read_dockerfile_from_stdin() if settings.file == STANDARD_INPUT else None,
            tags=settings.tags,
            target=settings.target,
            build_args=settings.build_args,
            progress=settings.progress,
            allow=settings.allow,
            network=settings.network,
            add_hosts=settings.add_hosts,
            shm_size=settings.shm_size,
            ulimits=settings.ulimits,
            **options,
        )
        request = drop_outputs(request)
        has_output = request.call or ((request.outputs or request.load) and not request.no_push)
        return request if has_output else _add_dist_archive(request)

    def build(self, request: BuildRequest) -> BuildResult:
        """Build an image for the platforms of the request, and record it as the last one built here.

        Emulators and builder are made ready first. What is pushed is pushed by digest:
        :meth:`release_build` moves the tags. An output file is replaced only when the build has succeeded.
        Raises also :class:`BuildFailed` with the exit status of buildx.
        """
        from buildkit_tasks.build.request import check_request

        check_request(request)
        self.check_cpu(request.platforms)
        with self._recording_start(request):
            result = self.build_checked(request)
        self.record_result(self.image_name, result)
        return result

    @contextmanager
    def _recording_start(self, request: BuildRequest) -> Iterator[None]:
        """Record that the request is built, unless a usage error refuses it."""
        options = list_typed_options(self.settings, asdict(request))
        image = RecordedImage.from_request(self.image_name, request, options)
        restore = self.record_start([image])
        try:
            yield
        except UsageError:
            restore()
            raise

    def check_cpu(self, platforms: tuple[Platform, ...]) -> None:
        """Raise :class:`UsageError` if a platform has no such CPU model as the settings request."""
        self.image_runner.check_cpu(platforms)

    def record_start(self, images: Iterable[RecordedImage]) -> Callable[[], None]:
        """Record that images are built as the last build here; return what restores the record before it.

        Until :meth:`record_result` is called, the record is that of a build that has failed. A dry run
        records nothing.
        """
        return (lambda: None) if self.commands.dry_run else self.resolver.last_build.start(images)

    def record_result(self, name: str, result: BuildResult) -> None:
        """Record what a build has made of the image with this name."""
        if not self.commands.dry_run:
            self.resolver.last_build.finish(name, result)

    def build_checked(self, request: BuildRequest) -> BuildResult:
        """Build a request that :func:`check_request` has accepted, and do not record it.

        Raises :class:`RegistryError` before anything is built if a registry to push to cannot be used.
        """
        from buildkit_tasks.build.multi_node import MultiNodeBuild, needs_multi_node
        from buildkit_tasks.build.request import set_epoch

        if request.pushed_names and not self.commands.dry_run:
            self.releases.check_access(request.pushed_names)
        execution = self._prepare_execution(set_epoch(request, self.commands, self.notify))
        if not needs_multi_node(execution.builder, request.platforms):
            return execution.execute()
        fallback = self.settings.fallback == "emulate"
        return MultiNodeBuild(
            build=execution, drop_nodes=self.builders.node_manager.drop_nodes, fallback=fallback
        ).execute()

    def call_frontend(self, request: BuildRequest) -> FrontendAnswer:
        """Let the frontend of the Dockerfile answer to the request's method (``--call``); build nothing."""
        from buildkit_tasks.build.request import check_request

        check_request(request)
        return self._prepare_execution(request).call_frontend()

    def _prepare_execution(self, request: BuildRequest) -> BuildExecution:
        """Make emulators, builder and base images ready."""
        from buildkit_tasks.build.capabilities import check_capabilities
        from buildkit_tasks.build.execute import BuildExecution
        from buildkit_tasks.system.reachability import is_registry_reachable

        with ThreadPoolExecutor(max_workers=1) as pool:
            # In a thread while emulators are probed: Docker Hub may take seconds to answer.
            is_reachable = pool.submit(is_registry_reachable, self.client_engine.mirrors).result
            if not self._is_remote and not self.settings.nodes:
                self._ensure_emulators(request.platforms)
            builder = self.builders.ensure(request.platforms, is_reachable)
            check_capabilities(request, self.client_engine, builder)
            base_plan = self._plan_bases(request, builder, is_reachable)
        return BuildExecution(
            request=request,
            engine=self.client_engine,
            builder=builder,
            base_plan=base_plan,
            commands=self.commands,
            notify=self.notify,
        )

    def _ensure_emulators(self, platforms: tuple[Platform, ...]) -> None:
        from buildkit_tasks.host.emulation.emulators import require_emulators

        rows = self.emulators.ensure(platforms)
        if not self.commands.dry_run:
            require_emulators(rows)

    def _plan_bases(
        self, request: BuildRequest, builder: BuilderSummary, is_reachable: Callable[[], bool]
    ) -> BasePlan:
        from buildkit_tasks.build.request import read_base_images
        from buildkit_tasks.build.standin_bases import StandInBases, plan_bases

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

    def release_build(
        self, request: BuildRequest, result: BuildResult, observer: RunObserver | None = None
    ) -> BuildResult:
        """Verify and run what a build has pushed, by its digest in the registry, then move its tags.

        Return the result with the verification, the runs and the tags; unchanged if nothing was pushed or
        if the build is ``split``. If a check or a run fails, no tag moves and ``ok`` is False.
        """
        tags = request.pushed_names
        if not tags or request.split:
            return result
        if self.commands.dry_run:
            condition = (
                "once its digest is verified and has run" if request.verify_first else "without verification"
            )
            self.notify(f"would tag it {', '.join(tags)}, {condition}")
            return result
        from buildkit_tasks.oci.model import Digest
        from buildkit_tasks.pipeline.release import ReleaseSpec

        spec = ReleaseSpec.from_tags(tags, request.platforms, verify_first=request.verify_first)
        pushed = self.releases.verify_and_tag(
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

    def verify_image(
        self,
        image: str,
        expected: tuple[Platform, ...] = (),
        hosts: Mapping[Platform, int] | None = None,
    ) -> VerifyReport:
        """Verify an image; see :meth:`ImageResolver.verify`. An empty name means the last one built here."""
        return self.resolver.verify(image, expected, hosts)

    def run_image(
        self, image: str, platforms: tuple[Platform, ...] = (), observer: RunObserver | None = None
    ) -> RunReport:
        """Run an image on each platform; see :meth:`ImageRunner.run_image`."""
        return self.image_runner.run_image(image, platforms, observer)

    def _open_container_backend(
        self, image: str, platforms: tuple[Platform, ...]
    ) -> AbstractContextManager[RunBackend]:
        with ThreadPoolExecutor(max_workers=1) as import_pool:
            import_pool.submit(importlib.import_module, "docker")  # 120 ms, while the engine is looked for
            engine = self.engine
        from buildkit_tasks.run.docker.backend import open_docker_backend

        return open_docker_backend(image, platforms, engine, self.emulators, self.resolver.open)

    def run_matrix(
        self, request: BuildRequest, observer: RunObserver | None = None
    ) -> tuple[MatrixReport, BuildkitTasksError | None]:
        """Set up, build, verify and run. The pipeline stops at the first step that fails.

        Return the report as far as it got, and the error that stopped it. An image that is pushed is
        verified and run in the registry, any other one in its OCI archive.
        """
        from buildkit_tasks.build.request import check_request
        from buildkit_tasks.host.emulation.emulators import require_emulators

        report = MatrixReport()
        request = _add_dist_archive(request)  # what is verified and run
        try:
            check_request(request)
            self.check_cpu(request.platforms)
            with self._recording_start(request):
                setup = self.setup()
                report = replace(report, setup=setup)
                if not self.commands.dry_run:
                    require_emulators(setup.platforms)
                built = self.build_checked(request)
            self.record_result(self.image_name, built)
            report = replace(report, build=built)
            released = self.release_build(request, built, observer)
            # The build succeeded even if the release did not: the report shows that in the next steps.
            report = replace(report, build=replace(released, ok=True))
            if self.commands.dry_run:
                return report, None  # there is no image
            if released.pushed is not None and released.pushed.verify is not None:
                return replace(report, verify=released.pushed.verify, run=released.pushed.run), None
            name = best_image_name(built)
            report = replace(report, verify=self.verify_image(name, request.platforms))
            report = replace(report, run=self.run_image(name, request.platforms, observer))
        except BuildkitTasksError as error:
            return replace(report, error=str(error)), error
        return report, None

    def remove_builder(self, *, keep_state: bool) -> list[str]:
        """Remove the builder named in the settings and the handlers that were added here; return their names.

        No engine is started: a builder that was made on a running engine can be reached now.
        """
        from buildkit_tasks.host.emulation.emulators import EmulatorManager
        from buildkit_tasks.host.engine import Engine, find_engine

        local_emulators = EmulatorManager.for_host(self.settings, self.commands, self.notify)
        removed = [f"handler {name}" for name in local_emulators.handler_table.remove_registered()]
        engine = self.client_engine if self._is_remote else find_engine(self.settings, self.commands)
        if isinstance(engine, Engine):
            builders = self._create_builder_manager(engine)
            if builders.remove(self.settings.name, keep_state=keep_state):
                removed.append(f"builder {self.settings.name}")
        return removed


def _add_dist_archive(request: BuildRequest) -> BuildRequest:
    """Return the request with an OCI archive among its outputs: in ``dist/``, unless it has one."""
    from buildkit_tasks.build.outputs import add_archive_output, make_archive_name

    dest = f"dist/{make_archive_name(request.tags, request.context)}"
    return replace(request, outputs=add_archive_output(request.outputs, dest))
