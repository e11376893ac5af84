"""The buildx builder: make it, find it, compare it with what is asked, heal it, remove it."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.builder.assigning import fixed_platforms, native_of
from buildkit_tasks.builder.comparing import differences
from buildkit_tasks.builder.creating import create_arguments, fix_arguments, leave_arguments
from buildkit_tasks.builder.found import Record, RecordedNode, parse_inspect, read_record
from buildkit_tasks.builder.natives import Natives
from buildkit_tasks.builder.reaching import silent_nodes
from buildkit_tasks.builder.store import record_of
from buildkit_tasks.builder.wanted import ELSEWHERE, WantedBuilder, WantedNode
from buildkit_tasks.errors import BuilderError, DeadlineExceeded, UsageError
from buildkit_tasks.locks import only_one
from buildkit_tasks.results import BuilderSummary, NodeSummary
from buildkit_tasks.settings import BUILDER_NAME, cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from buildkit_tasks.commands import Completed, Runner
    from buildkit_tasks.debian import Tell
    from buildkit_tasks.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.settings import Settings

__all__ = ["Builders", "require_index"]

_INSPECT_SECONDS = 30.0
_BOOTSTRAP_SECONDS = 300.0
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
    def natives(self) -> Natives:
        """What is known of the machines of the nodes."""
        return Natives.beside(self._record(self.settings.name).parent, cache_folder(self.settings))

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
        lost = self._lost(read_record(self._record(wanted.name)))
        found = self.find(wanted.name)
        if found is not None and recreate and found.driver != "docker":
            self._check_remakable(found)
            self.remove(found.name, keep_state=keep_state)
            found = None
        if found is None:
            return self._new(answers)
        compared = self._reachable(self._compared(found))
        return self._healed(self._fixed(compared) if lost else compared, platforms)

    def find(self, name: str) -> BuilderSummary | None:
        """The builder of that name as buildx describes it, or None."""
        if not BUILDER_NAME.match(name):
            raise UsageError(f"{name!r} is no builder name", hint="letters, digits, '.', '_' and '-'")
        record = read_record(self._record(name))
        # A look into buildx's store saves starting buildx.
        if name not in ("default", self.engine.context) and record is None:
            return None
        done = self._buildx("inspect", name, timeout=_INSPECT_SECONDS, mutates=False)
        if not done.ok and "no builder" in done.stderr:
            return None
        if not done.ok:
            raise BuilderError(
                f"buildx cannot read builder {name!r}: {done.reason}", hint=f"look into {self._record(name)}"
            )
        found = parse_inspect(done.stdout)
        fixed = {node.name: node.platforms for node in record.nodes} if record else {}
        known = self.natives.of(name)
        nodes = (replace(node, fixed=fixed.get(node.name, ())) for node in found.nodes)
        # The engine's own builder runs where the engine does.
        own = str(self.engine.native) if found.driver == "docker" else ""
        named = (replace(node, native=own or known.get(node.name) or native_of(node)) for node in nodes)
        return replace(found, nodes=tuple(named))

    def remove(self, name: str, *, keep_state: bool = False) -> bool:
        """Remove the builder of that name and confirm that it is gone; gives whether there was one."""
        found = self.find(name)
        if found is None or found.driver == "docker":
            return False
        options = ["--keep-state"] if keep_state else []
        try:
            words = self._buildx("rm", "--force", *options, name).reason
        except DeadlineExceeded as late:
            words = late.message  # row 16: it may be gone all the same
        if not self.run.dry_run:
            if self.find(name) is not None:
                raise BuilderError(
                    f"builder {name!r} could not be removed: {words}", hint=f"docker buildx rm {name}"
                )
            self.natives.forget(name)
        return True

    def without(self, builder: BuilderSummary, names: Sequence[str]) -> BuilderSummary:
        """The builder without some of its nodes, whose platforms others emulate from now on.

        Raises :class:`BuilderError` if none is left. The next :meth:`ensure` takes them in again, if
        the settings ask for them.
        """
        left = tuple(node for node in builder.nodes if node.name not in names)
        if not left:
            raise BuilderError(f"builder {builder.name!r} has no node that answers", hint="inv doctor")
        for name in names:
            self._buildx(*leave_arguments(builder.name, name))
        return self._fixed(replace(builder, nodes=left))

    def silent(self, nodes: Sequence[WantedNode]) -> dict[str, str]:
        """The silent ones of these nodes, each with the reason, asked with the options that hold for it."""
        wanted = self.wanted
        record = read_record(self._record(wanted.name)) if wanted.driver == "auto" else None
        asked = [replace(node, options=wanted.options_of(node)) for node in nodes]
        return silent_nodes(asked, record.driver if record else wanted.driver)

    def _lost(self, record: Record | None) -> list[str]:
        """Take silent nodes out of the builder where others may take over; gives their names.

        Row 29's manners for nodes: a silent one is told of in seconds, where buildx waits for 35.
        Raises :class:`BuilderError` if they may not, or if no node is left.
        """
        there = record.nodes if record else ()
        asked = self.wanted.nodes or list(map(_as_wanted, there))
        silent = self.silent(asked)
        self._leave_out(silent, len(asked))
        lost = [node.name for node in there if node.name in silent]
        for name in lost:
            self._buildx(*leave_arguments(self.wanted.name, name))
        return lost

    def _reachable(self, found: BuilderSummary) -> BuilderSummary:
        """The builder without nodes whose engine buildx cannot reach: by ssh, or in a docker context.

        Raises :class:`BuilderError` if others may not take over.
        """
        gone = _gone(found.nodes)
        self._leave_out(gone, len(found.nodes))
        return self.without(found, list(gone)) if gone else found

    def _check_remakable(self, found: BuilderSummary) -> None:
        """Raise :class:`BuilderError` before a builder is removed whose nodes could not be made again."""
        asked = {node.endpoint for node in self.wanted.nodes}
        gone = _gone([node for node in found.nodes if node.endpoint in asked])
        if self.settings.fallback != "emulate":
            self._leave_out(gone, len(found.nodes))

    def _leave_out(self, gone: Mapping[str, str], count: int) -> None:
        """Tell of nodes of ``count`` that are not there; raise :class:`BuilderError` if they are needed."""
        if gone and (self.settings.fallback != "emulate" or len(gone) == count):
            raise BuilderError(
                "; ".join(f"node {name}: {words}" for name, words in gone.items()),
                hint="look at that machine, or let the other nodes emulate: --fallback=emulate",
            )
        for name, words in gone.items():
            self.tell(f"node {name} is left out, others emulate: {words}")

    def _compared(self, found: BuilderSummary) -> BuilderSummary:
        """The builder, nodes that were lost taken in again. Raises for one that is not what is asked for."""
        record = read_record(self._record(found.name))
        told = differences(self.wanted, found, record)
        if told:
            raise BuilderError(f"builder {found.name!r} {'; '.join(told)}", hint=_RECREATE)
        here = {node.name for node in found.nodes}
        lost = [node for node in self.wanted.nodes if node.name not in here]
        silent = self.silent(lost)
        back = [node for node in lost if node.name not in silent]
        if not back:
            return found
        self.tell(f"taking {', '.join(node.name for node in back)} into builder {found.name} again")
        with self._configuration() as config:
            for node in back:
                done = self._make_node(node, found.driver, config, first=False)
                if not done.ok:
                    self._leave_out({node.name: _short(done.reason)}, len(self.wanted.nodes))
        return self._settled(found.name)

    def _healed(self, found: BuilderSummary, platforms: Sequence[Platform]) -> BuilderSummary:
        """A running BuildKit learns of new emulators only when it is started again."""
        offered = {name for node in found.nodes for name in node.platforms}
        missing = [str(platform) for platform in platforms if str(platform) not in offered]
        if found.driver != "docker-container" or not missing:
            return found
        self.tell(f"starting builder {found.name} again, so that it sees {', '.join(missing)}")
        self._buildx("stop", found.name)
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
        return self.run.run(argv, self.engine.call(timeout=_INSPECT_SECONDS)).ok

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
            self.natives.forget(name)  # of one that somebody else has removed
        silent = self.silent(self.wanted.nodes)
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
        self._leave_out(unmade, len(nodes))
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
                    unmade[node.name] = _short(done.reason)
                    if self.settings.fallback != "emulate":
                        break
        return unmade

    def _make_node(self, node: WantedNode, driver: str, config: str, *, first: bool) -> Completed:
        return self._buildx(*create_arguments(self.wanted, node, driver, config, first=first))

    def _settled(self, name: str) -> BuilderSummary:
        """The builder with all nodes booted, their machines noted and their platforms fixed."""
        self._buildx("inspect", "--bootstrap", name)
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
            return self.without(found, [node.name for node in lame])
        self.natives.note(name, {node.name: node.native for node in found.nodes})
        return self._fixed(found)

    def _fixed(self, found: BuilderSummary) -> BuilderSummary:
        """Fix each platform on a node, if there are several: see :mod:`buildkit_tasks.builder.assigning`."""
        asked: dict[str, Sequence[object]] = {node.name: node.fixed for node in found.nodes}
        asked |= {node.name: node.platforms for node in self.wanted.nodes}
        if len(found.nodes) == 1 and not any(asked.values()) and not found.nodes[0].fixed:
            return found
        chosen = fixed_platforms(found.nodes, asked)
        for node in found.nodes:
            if chosen[node.name] != node.fixed:
                self._buildx(*fix_arguments(found.name, node.name, node.endpoint, chosen[node.name]))
        nodes = (replace(node, fixed=chosen[node.name]) for node in found.nodes)
        return replace(found, nodes=tuple(nodes))

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

    def _buildx(
        self, *arguments: str, timeout: float = _BOOTSTRAP_SECONDS, mutates: bool = True
    ) -> Completed:
        argv = [*self.engine.tools.buildx, *arguments]
        return self.run.run(argv, self.engine.call(timeout=timeout), mutates=mutates)

    def _record(self, name: str) -> Path:
        """The file in which buildx keeps a builder of that name."""
        return record_of(name, self.engine.env)


def _gone(nodes: Iterable[NodeSummary]) -> dict[str, str]:
    """The nodes of which buildx has an error to tell, and nothing else, each with the reason."""
    return {
        node.name: f"{node.endpoint} cannot be reached: {_short(node.error)}" for node in nodes if node.error
    }


def _short(words: str) -> str:
    """What ssh itself said, if docker's client quotes it: the rest is the command and advice."""
    return words.rpartition("stderr=")[2]


def _as_wanted(node: RecordedNode) -> WantedNode:
    """A node that is there as if it were asked for."""
    options = tuple(f"{name}={value}" for name, value in node.options.items())
    return WantedNode(name=node.name, endpoint=node.endpoint, options=options)


def require_index(builder: BuilderSummary, engine: Engine) -> None:
    """Raise :class:`BuilderError` if this builder cannot make one image of several platforms."""
    if builder.driver == "docker" and engine.store != "containerd":
        raise BuilderError(
            "this engine's own builder makes one platform at a time (its image store is not containerd's), "
            f"and no other can be had: {builder.reason}",
            hint='--engine=private, or set "features": {"containerd-snapshotter": true} in daemon.json',
        )
