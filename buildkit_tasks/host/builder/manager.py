"""The buildx builder: make it, find it, compare it with what is asked, heal it, remove it."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import cache_folder
from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.buildx import INSPECT_SECONDS, Buildx, create_arguments
from buildkit_tasks.host.builder.diff import differences
from buildkit_tasks.host.builder.nodes import Nodes, short
from buildkit_tasks.host.builder.spec import ELSEWHERE, WantedBuilder, WantedNode
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from buildkit_tasks.system.lock import only_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import Completed, Runner
    from buildkit_tasks.system.notify import Tell

__all__ = ["Builders", "require_index"]

_RECREATE = "inv setup-builder --recreate"
_ENDPOINTS = "look at its nodes' endpoints, or let the other nodes emulate: --fallback=emulate"
# What to do about a builder that could not be made, by its driver.
_UNMADE = {
    "docker-container": "--driver=docker, or name an image that is here: --driver-opt=image=IMAGE",
    "kubernetes": "look at kubectl's configuration (KUBECONFIG) and at --driver-opt=namespace=NAME",
}


@dataclass(frozen=True, kw_only=True)
class Builders:
    """The buildx builders of one engine."""

    engine: Engine
    settings: Settings
    run: Runner
    tell: Tell

    @cached_property
    def wanted(self) -> WantedBuilder:
        """What the settings ask for. Raises :class:`UsageError` for what cannot be."""
        return WantedBuilder.of(self.settings)

    @cached_property
    def buildx(self) -> Buildx:
        """The buildx of the engine, with its store."""
        return Buildx(engine=self.engine, settings=self.settings, run=self.run)

    @cached_property
    def nodes(self) -> Nodes:
        """The nodes of the builder that is asked for."""
        fallback = self.settings.fallback == "emulate"
        return Nodes(buildx=self.buildx, wanted=self.wanted, fallback=fallback, tell=self.tell)

    def ensure(
        self,
        platforms: Sequence[Platform],
        answers: Callable[[], bool],
        *,
        recreate: bool = False,
        keep_state: bool = False,
    ) -> BuilderSummary:
        """The builder by the settings' name, or the engine's own where no builder image can be had.

        ``answers`` tells whether a registry can be reached. Raises :class:`BuilderError` when a
        builder of that name is not what is asked for (``recreate`` mends it, ``keep_state`` then keeps
        its cache), when a node is silent, or when it cannot be made.
        """
        wanted = self.wanted
        if self.engine.planned and wanted.driver not in ELSEWHERE:
            return self._engines_own("the engine is not running yet")
        lost = self.nodes.take_out(self.buildx.record(wanted.name))
        found = self.find(wanted.name)
        if found is not None and recreate and found.driver != "docker":
            self.nodes.check_remakable(found)
            self.remove(found.name, keep_state=keep_state)
            found = None
        if found is None:
            return self._new(answers)
        compared = self.nodes.reachable(self._compared(found))
        return self._healed(self.nodes.fixed(compared) if lost else compared, platforms)

    def find(self, name: str) -> BuilderSummary | None:
        """The builder of that name as buildx describes it, or None."""
        return self.buildx.find(name)

    def remove(self, name: str, *, keep_state: bool = False) -> bool:
        """Remove the builder of that name and confirm that it is gone; gives whether there was one."""
        return self.buildx.remove(name, keep_state=keep_state)

    def _compared(self, found: BuilderSummary) -> BuilderSummary:
        """The builder, nodes that were lost taken in again. Raises for one that is not what is asked for."""
        record = self.buildx.record(found.name)
        told = differences(self.wanted, found, record)
        if told:
            raise BuilderError(f"builder {found.name!r} {'; '.join(told)}", hint=_RECREATE)
        here = {node.name for node in found.nodes}
        lost = [node for node in self.wanted.nodes if node.name not in here]
        silent = self.nodes.silent(lost)
        back = [node for node in lost if node.name not in silent]
        if not back:
            return found
        self.tell(f"taking {', '.join(node.name for node in back)} into builder {found.name} again")
        with self._configuration() as config:
            for node in back:
                done = self._make_node(node, found.driver, config, first=False)
                if not done.ok:
                    self.nodes.leave_out({node.name: short(done.reason)}, len(self.wanted.nodes))
        return self._settled(found.name)

    def _healed(self, found: BuilderSummary, platforms: Sequence[Platform]) -> BuilderSummary:
        """A running BuildKit learns of new emulators only when it is started again."""
        offered = {name for node in found.nodes for name in node.platforms}
        missing = [str(platform) for platform in platforms if str(platform) not in offered]
        if found.driver != "docker-container" or not missing:
            return found
        self.tell(f"starting builder {found.name} again, so that it sees {', '.join(missing)}")
        self.buildx.call("stop", found.name)
        return self._settled(found.name)

    def _new(self, answers: Callable[[], bool]) -> BuilderSummary:
        wanted = self.wanted
        wanted.check_new()
        if wanted.driver == "docker":
            return self._engines_own("asked for")
        if wanted.driver != "auto":
            return self._create(wanted.driver, "asked for")
        if wanted.nodes:
            return self._create("docker-container", "nodes are asked for")
        if self._has_image(wanted.image):
            return self._create("docker-container", f"its image {wanted.image} is here")
        if answers():
            return self._create("docker-container", f"its image {wanted.image} can be pulled")
        return self._engines_own(f"{wanted.image} is not here and Docker Hub does not answer")

    def _has_image(self, image: str) -> bool:
        argv = [*self.engine.tools.docker, "image", "inspect", "--format=ok", "--", image]
        return self.run.run(argv, self.engine.call(timeout=INSPECT_SECONDS)).ok

    def _engines_own(self, reason: str) -> BuilderSummary:
        """The builder inside the engine: buildx names it after the docker context."""
        name = self.engine.context
        node = NodeSummary(name=name, endpoint=self.engine.endpoint, native=str(self.engine.native))
        return BuilderSummary(name=name, driver="docker", nodes=(node,), reason=reason)

    def _create(self, driver: str, reason: str) -> BuilderSummary:
        """Make the builder, once: of many at the same time, one makes it and the others find it."""
        name = self.wanted.name
        with only_one(cache_folder(self.settings) / f".builder-{name}.lock", dry_run=self.run.dry_run):
            # A dry run shows how it is made, though the one to be made anew is still there.
            found = None if self.run.dry_run else self.find(name)
            if found is None:
                found = self._made(driver)
        return replace(found, reason=reason)

    def _made(self, driver: str) -> BuilderSummary:
        name = self.wanted.name
        if not self.run.dry_run:
            self.buildx.natives.forget(name)  # of one that somebody else has removed
        silent = self.nodes.silent(self.wanted.nodes)
        nodes = [node for node in self.wanted.each if node.name not in silent]
        unmade = self._make_nodes(nodes, driver)
        if self.run.dry_run:
            return BuilderSummary(name=name, driver=driver)
        found = self.find(name)
        if found is None or (unmade and self.settings.fallback != "emulate"):
            self.remove(name)
            words = "; ".join(f"node {node}: {reason}" if node else reason for node, reason in unmade.items())
            elsewhere = any(node.endpoint for node in nodes)
            raise BuilderError(
                f"builder {name!r} could not be made: {words or 'no node answers'}",
                hint=_ENDPOINTS if elsewhere else _UNMADE.get(driver, _ENDPOINTS),
            )
        self.nodes.leave_out(unmade, len(nodes))
        try:
            return self._settled(name) if self.wanted.nodes else found
        except BuilderError:
            self.remove(name)
            raise

    def _make_nodes(self, nodes: Sequence[WantedNode], driver: str) -> dict[str, str]:
        """Make one after the other; gives those that could not be made, each with the reason."""
        unmade: dict[str, str] = {}
        with self._configuration() as config:
            for number, node in enumerate(nodes):
                done = self._make_node(node, driver, config, first=number == len(unmade))
                if not done.ok:
                    unmade[node.name] = short(done.reason)
                    if self.settings.fallback != "emulate":
                        break
        return unmade

    def _make_node(self, node: WantedNode, driver: str, config: str, *, first: bool) -> Completed:
        return self.buildx.call(*create_arguments(self.wanted, node, driver, config, first=first))

    def _settled(self, name: str) -> BuilderSummary:
        """The builder with all nodes booted, their machines noted and their platforms fixed."""
        self.buildx.call("inspect", "--bootstrap", name)
        found = self.find(name)
        if found is None:
            raise BuilderError(f"builder {name!r} went away", hint="inv setup-builder")
        lame = [node for node in found.nodes if node.status != "running"]
        if lame and self.settings.fallback != "emulate":
            words = "; ".join(
                f"node {node.name} at {node.endpoint}: {node.error or node.status}" for node in lame
            )
            raise BuilderError(f"builder {name!r}: {words}", hint="docker buildx inspect --bootstrap " + name)
        if lame:
            return self.nodes.without(found, [node.name for node in lame])
        self.buildx.natives.note(name, {node.name: node.native for node in found.nodes})
        return self.nodes.fixed(found)

    @contextlib.contextmanager
    def _configuration(self) -> Iterator[str]:
        """The name of a file with the asked buildkitd.toml, of which buildx keeps a copy; empty for none."""
        if not self.wanted.config:
            yield ""
            return
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            path = Path(folder) / "buildkitd.toml"
            path.write_text(self.wanted.config, encoding="utf-8")
            if self.run.dry_run:
                self.tell(f"{path} would hold:\n{self.wanted.config}")
            yield str(path)


def require_index(builder: BuilderSummary, engine: Engine) -> None:
    """Raise :class:`BuilderError` if this builder cannot make one image of several platforms."""
    if builder.driver == "docker" and engine.store != "containerd":
        raise BuilderError(
            "this engine's own builder makes one platform at a time (its image store is not containerd's), "
            f"and no other can be had: {builder.reason}",
            hint='--engine=private, or set "features": {"containerd-snapshotter": true} in daemon.json',
        )
