"""The nodes of a builder: which are there, what becomes of those that are not, and which builds what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.assignment import fixed_platforms
from buildkit_tasks.host.builder.buildx import fix_arguments, leave_arguments
from buildkit_tasks.host.builder.health import silent_nodes
from buildkit_tasks.host.builder.spec import WantedNode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from buildkit_tasks.host.builder.buildx import Buildx
    from buildkit_tasks.host.builder.spec import WantedBuilder
    from buildkit_tasks.host.builder.store import Record, RecordedNode
    from buildkit_tasks.report.model import BuilderSummary, NodeSummary
    from buildkit_tasks.system.notify import Tell

__all__ = ["Nodes", "short"]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes of the builder that is asked for; with ``fallback`` others emulate what one lost builds."""

    buildx: Buildx
    wanted: WantedBuilder
    fallback: bool
    tell: Tell

    def silent(self, nodes: Sequence[WantedNode]) -> dict[str, str]:
        """The silent ones of these nodes, each with the reason, asked with the options that hold for it."""
        wanted = self.wanted
        record = self.buildx.record(wanted.name) if wanted.driver == "auto" else None
        asked = [replace(node, options=wanted.options_of(node)) for node in nodes]
        return silent_nodes(asked, record.driver if record else wanted.driver)

    def take_out(self, record: Record | None) -> list[str]:
        """Take silent nodes out of the builder where others may take over; gives their names.

        Row 29's manners for nodes: a silent one is told of in seconds, where buildx waits for 35.
        Raises :class:`BuilderError` if they may not, or if no node is left.
        """
        there = record.nodes if record else ()
        asked = self.wanted.nodes or list(map(_as_wanted, there))
        silent = self.silent(asked)
        self.leave_out(silent, len(asked))
        lost = [node.name for node in there if node.name in silent]
        for name in lost:
            self.buildx.call(*leave_arguments(self.wanted.name, name))
        return lost

    def reachable(self, found: BuilderSummary) -> BuilderSummary:
        """The builder without nodes whose engine buildx cannot reach: by ssh, or in a docker context.

        Raises :class:`BuilderError` if others may not take over.
        """
        gone = _gone(found.nodes)
        self.leave_out(gone, len(found.nodes))
        return self.without(found, list(gone)) if gone else found

    def check_remakable(self, found: BuilderSummary) -> None:
        """Raise :class:`BuilderError` before a builder is removed whose nodes could not be made again."""
        asked = {node.endpoint for node in self.wanted.nodes}
        gone = _gone([node for node in found.nodes if node.endpoint in asked])
        if not self.fallback:
            self.leave_out(gone, len(found.nodes))

    def leave_out(self, gone: Mapping[str, str], count: int) -> None:
        """Tell of nodes of ``count`` that are not there; raise :class:`BuilderError` if they are needed."""
        if gone and (not self.fallback or len(gone) == count):
            raise BuilderError(
                "; ".join(f"node {name}: {words}" for name, words in gone.items()),
                hint="look at that machine, or let the other nodes emulate: --fallback=emulate",
            )
        for name, words in gone.items():
            self.tell(f"node {name} is left out, others emulate: {words}")

    def without(self, builder: BuilderSummary, names: Sequence[str]) -> BuilderSummary:
        """The builder without some of its nodes, whose platforms others emulate from now on.

        Raises :class:`BuilderError` if none is left. What makes the builder ready the next time takes
        them in again, if the settings ask for them.
        """
        left = tuple(node for node in builder.nodes if node.name not in names)
        if not left:
            raise BuilderError(f"builder {builder.name!r} has no node that answers", hint="inv doctor")
        for name in names:
            self.buildx.call(*leave_arguments(builder.name, name))
        return self.fixed(replace(builder, nodes=left))

    def fixed(self, found: BuilderSummary) -> BuilderSummary:
        """Fix each platform on a node, if there are several: see :mod:`.assignment`."""
        asked: dict[str, Sequence[object]] = {node.name: node.fixed for node in found.nodes}
        asked |= {node.name: node.platforms for node in self.wanted.nodes}
        if len(found.nodes) == 1 and not any(asked.values()) and not found.nodes[0].fixed:
            return found
        chosen = fixed_platforms(found.nodes, asked)
        for node in found.nodes:
            if chosen[node.name] != node.fixed:
                self.buildx.call(*fix_arguments(found.name, node.name, node.endpoint, chosen[node.name]))
        nodes = (replace(node, fixed=chosen[node.name]) for node in found.nodes)
        return replace(found, nodes=tuple(nodes))


def _gone(nodes: Iterable[NodeSummary]) -> dict[str, str]:
    """The nodes of which buildx has an error to tell, and nothing else, each with the reason."""
    return {
        node.name: f"{node.endpoint} cannot be reached: {short(node.error)}" for node in nodes if node.error
    }


def short(words: str) -> str:
    """What ssh itself said, if docker's client quotes it: the rest is the command and advice."""
    return words.rpartition("stderr=")[2]


def _as_wanted(node: RecordedNode) -> WantedNode:
    """A node that is there as if it were asked for."""
    options = tuple(f"{name}={value}" for name, value in node.options.items())
    return WantedNode(name=node.name, endpoint=node.endpoint, options=options)
