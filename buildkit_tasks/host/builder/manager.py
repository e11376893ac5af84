"""Create, find, check, repair and remove the buildx builder of the settings."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import cache_folder, create_cache_folder
from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.buildx import INSPECT_SECONDS, Buildx, create_args
from buildkit_tasks.host.builder.diff import diff_builder
from buildkit_tasks.host.builder.health import format_reasons
from buildkit_tasks.host.builder.nodes import NodeManager, extract_ssh_error
from buildkit_tasks.host.builder.spec import MANAGED_DRIVERS, REMOTE_DRIVERS, BuilderSpec, NodeSpec
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from buildkit_tasks.system.lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import CommandResult, CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["BuilderManager", "require_index"]

# An engine restarts a container whose BuildKit ended; it does not answer at once.
_RESTART_SECONDS, _POLL_SECONDS = 15.0, 0.2
_RESTARTING = re.compile(r"listing workers: |Container \w+ is (restarting|not running)")
_RECREATE_HINT = "inv setup-builder --recreate"
_ENDPOINTS_HINT = "check the endpoints of its nodes, or let other nodes emulate: --fallback=emulate"
# The hint for a builder that could not be created, by driver.
_CREATE_FAILED_HINTS = {
    "docker-container": "--driver=docker, or use an image that the engine has: --driver-opt=image=IMAGE",
    "kubernetes": "check kubectl's configuration (KUBECONFIG) and --driver-opt=namespace=NAME",
}


@dataclass(frozen=True, kw_only=True)
class BuilderManager:
    """The buildx builders of one engine."""

    engine: Engine
    settings: Settings
    commands: CommandRunner
    notify: Notify

    @cached_property
    def spec(self) -> BuilderSpec:
        """The builder that the settings require. Raise :class:`UsageError` for an impossible one."""
        return BuilderSpec.from_settings(self.settings)

    @cached_property
    def buildx(self) -> Buildx:
        """The buildx client of the engine."""
        return Buildx(engine=self.engine, settings=self.settings, commands=self.commands)

    @cached_property
    def node_manager(self) -> NodeManager:
        """The nodes of the builder of the settings."""
        fallback = self.settings.fallback == "emulate"
        return NodeManager(buildx=self.buildx, spec=self.spec, can_fall_back=fallback, notify=self.notify)

    def ensure(
        self,
        platforms: Sequence[Platform],
        is_registry_reachable: Callable[[], bool],
        *,
        recreate: bool = False,
        keep_state: bool = False,
    ) -> BuilderSummary:
        """Find or create the builder of the settings, or return the engine's own.

        The engine's own is used if the builder's image is neither present nor can be pulled.
        ``recreate`` replaces an existing builder; with ``keep_state`` its cache is kept. Raise
        :class:`BuilderError` if an existing builder differs from the settings, a node does not respond,
        or the builder cannot be created.
        """
        spec = self.spec
        if self.engine.is_planned and spec.driver not in REMOTE_DRIVERS:
            return self._default_builder("the engine is not running yet")
        if not self.commands.dry_run:
            create_cache_folder(self.settings)
            self.buildx.check_store()
        removed = self.node_manager.remove_unreachable(self.buildx.read_record(spec.name))
        builder = self._find_started(spec.name)
        if builder is not None and recreate and builder.driver != "docker":
            self.node_manager.check_recreatable(builder)
            self.remove(builder.name, keep_state=keep_state)
            builder = None
        if builder is None:
            return self._create_builder(is_registry_reachable)
        reconciled = self.node_manager.drop_failed_nodes(self._reconcile_nodes(builder))
        return self._restart_if_platforms_missing(
            self.node_manager.fix_platforms(reconciled) if removed else reconciled, platforms
        )

    def find(self, name: str) -> BuilderSummary | None:
        """Return the builder of that name as buildx describes it, or None."""
        return self.buildx.find(name)

    def _find_started(self, name: str) -> BuilderSummary | None:
        """Return the builder of that name, after a BuildKit that is being restarted answers again."""
        deadline = time.monotonic() + _RESTART_SECONDS
        builder = self.find(name)
        while builder is not None and _is_restarting(builder) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            builder = self.find(name)
        return builder

    def remove(self, name: str, *, keep_state: bool = False) -> bool:
        """Remove the builder of that name and check that it is gone; return whether there was one."""
        return self.buildx.remove(name, keep_state=keep_state)

    def _reconcile_nodes(self, builder: BuilderSummary) -> BuilderSummary:
        """Add missing nodes again. Raise :class:`BuilderError` if the builder differs from the settings."""
        record = self.buildx.read_record(builder.name)
        mismatches = diff_builder(self.spec, builder, record)
        if mismatches:
            raise BuilderError(f"builder {builder.name!r} {'; '.join(mismatches)}", hint=_RECREATE_HINT)
        present = {node.name for node in builder.nodes}
        missing = [node for node in self.spec.nodes if node.name not in present]
        unreachable = self.node_manager.unreachable(missing)
        rejoining = [node for node in missing if node.name not in unreachable]
        if not rejoining:
            return builder
        self.notify(f"adding {', '.join(node.name for node in rejoining)} to builder {builder.name} again")
        with self._config_file() as config_path:
            for node in rejoining:
                result = self._create_node(node, builder.driver, config_path, first=False)
                if not result.ok:
                    self.node_manager.drop_or_fail(
                        {node.name: extract_ssh_error(result.reason)}, len(self.spec.nodes)
                    )
        return self._bootstrap(builder.name)

    def _restart_if_platforms_missing(
        self, builder: BuilderSummary, platforms: Sequence[Platform]
    ) -> BuilderSummary:
        """Restart BuildKit if platforms are missing: it detects emulators only when it starts."""
        available = {name for node in builder.nodes for name in node.platforms}
        missing = [str(platform) for platform in platforms if str(platform) not in available]
        if builder.driver != "docker-container" or not missing:
            return builder
        self.notify(f"restarting builder {builder.name} to detect {', '.join(missing)}")
        self.buildx.run_command("stop", builder.name)
        return self._bootstrap(builder.name)

    def _create_builder(self, is_registry_reachable: Callable[[], bool]) -> BuilderSummary:
        spec = self.spec
        spec.check_creatable()
        if spec.driver == "docker":
            return self._default_builder("set in the settings")
        if spec.driver != "auto":
            return self._create_locked(spec.driver, "set in the settings")
        if spec.nodes:
            return self._create_locked("docker-container", "the settings have nodes")
        if self._has_image(spec.image):
            return self._create_locked("docker-container", f"the engine has its image {spec.image}")
        if is_registry_reachable():
            return self._create_locked("docker-container", f"its image {spec.image} can be pulled")
        return self._default_builder(f"the engine lacks {spec.image} and Docker Hub does not answer")

    def _has_image(self, image: str) -> bool:
        argv = [*self.engine.tools.docker, "image", "inspect", "--format=ok", "--", image]
        return self.commands.run(argv, self.engine.command_options(timeout=INSPECT_SECONDS)).ok

    def _default_builder(self, reason: str) -> BuilderSummary:
        """Return the engine's own builder, which buildx names after the docker context."""
        name = self.engine.context
        node = NodeSummary(name=name, endpoint=self.engine.endpoint, native=str(self.engine.platform))
        return BuilderSummary(name=name, driver="docker", nodes=(node,), reason=reason)

    def _create_locked(self, driver: str, reason: str) -> BuilderSummary:
        """Create the builder under a lock, unless another process has just created it."""
        name = self.spec.name
        with file_lock(cache_folder(self.settings) / f".builder-{name}.lock", dry_run=self.commands.dry_run):
            # A dry run has not removed the builder that it would recreate.
            builder = None if self.commands.dry_run else self.find(name)
            if builder is None:
                builder = self._create_unlocked(driver)
        return replace(builder, reason=reason)

    def _create_unlocked(self, driver: str) -> BuilderSummary:
        name = self.spec.name
        if not self.commands.dry_run:
            self.buildx.native_platforms.remove(name)  # left by a builder that was removed by other means
        unreachable = self.node_manager.unreachable(self.spec.nodes)
        nodes = [node for node in self.spec.effective_nodes if node.name not in unreachable]
        failed = self._create_nodes(nodes, driver)
        if self.commands.dry_run:
            return BuilderSummary(name=name, driver=driver)
        builder = self.find(name)
        if builder is None or (failed and self.settings.fallback != "emulate"):
            self.remove(name)
            raise self._create_error(driver, nodes, failed)
        self.node_manager.drop_or_fail(failed, len(nodes))
        try:
            return self._bootstrap(name) if self.spec.nodes else builder
        except BuilderError:
            self.remove(name)
            raise

    def _create_error(
        self, driver: str, nodes: Sequence[NodeSpec], failed: Mapping[str, str]
    ) -> BuilderError:
        # A builder without named nodes has one, whose name is empty.
        reasons = failed.get("") or format_reasons(failed) or "no node answers"
        has_endpoint = any(node.endpoint for node in nodes)
        return BuilderError(
            f"builder {self.spec.name!r} could not be created: {reasons}",
            hint=_ENDPOINTS_HINT if has_endpoint else _CREATE_FAILED_HINTS.get(driver, _ENDPOINTS_HINT),
        )

    def _create_nodes(self, nodes: Sequence[NodeSpec], driver: str) -> dict[str, str]:
        """Create the nodes one by one; return those that failed, with the reason."""
        failed: dict[str, str] = {}
        with self._config_file() as config_path:
            for number, node in enumerate(nodes):
                result = self._create_node(node, driver, config_path, first=number == len(failed))
                if not result.ok:
                    failed[node.name] = extract_ssh_error(result.reason)
                    if self.settings.fallback != "emulate":
                        break
        return failed

    def _create_node(self, node: NodeSpec, driver: str, config_path: str, *, first: bool) -> CommandResult:
        return self.buildx.run_command(*create_args(self.spec, node, driver, config_path, first=first))

    def _bootstrap(self, name: str) -> BuilderSummary:
        """Boot all nodes, save the platforms of their machines, and fix platforms on them."""
        self.buildx.run_command("inspect", "--bootstrap", name)
        builder = self.find(name)
        if builder is None:
            raise BuilderError(f"builder {name!r} was removed meanwhile", hint="inv setup-builder")
        not_running = [node for node in builder.nodes if node.status != "running"]
        if not_running and self.settings.fallback != "emulate":
            reasons = "; ".join(
                f"node {node.name} at {node.endpoint}: {node.error or node.status}" for node in not_running
            )
            raise BuilderError(
                f"builder {name!r}: {reasons}", hint="docker buildx inspect --bootstrap " + name
            )
        if not_running:
            return self.node_manager.drop_nodes(builder, [node.name for node in not_running])
        self.buildx.native_platforms.save(name, {node.name: node.native for node in builder.nodes})
        return self.node_manager.fix_platforms(builder)

    @contextlib.contextmanager
    def _config_file(self) -> Iterator[str]:
        """Yield the path of a temporary buildkitd.toml, which buildx copies; empty if there is none."""
        if not self.spec.buildkitd_toml:
            yield ""
            return
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            path = Path(folder) / "buildkitd.toml"
            path.write_text(self.spec.buildkitd_toml, encoding="utf-8")
            if self.commands.dry_run:
                self.notify(f"{path} would contain:\n{self.spec.buildkitd_toml}")
            yield str(path)


def _is_restarting(builder: BuilderSummary) -> bool:
    """Return True if the container of a node is being restarted, or its BuildKit does not answer yet."""
    return builder.driver in MANAGED_DRIVERS and any(_RESTARTING.search(node.error) for node in builder.nodes)


def require_index(builder: BuilderSummary, engine: Engine) -> None:
    """Raise :class:`BuilderError` if this builder cannot build an image index."""
    if builder.driver == "docker" and engine.store != "containerd":
        raise BuilderError(
            "the engine's own builder builds one platform at a time, because the engine does not use the "
            f"containerd image store; no other builder is available: {builder.reason}",
            hint='--engine=private, or set "features": {"containerd-snapshotter": true} in daemon.json',
        )
