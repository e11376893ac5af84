"""Remove nodes that do not respond from a builder, and fix platforms on the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.assignment import choose_fixed_platforms
from buildkit_tasks.host.builder.buildx import fix_platforms_args, leave_args
from buildkit_tasks.host.builder.health import format_reasons, unreachable_nodes
from buildkit_tasks.host.builder.spec import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from buildkit_tasks.host.builder.buildx import Buildx
    from buildkit_tasks.host.builder.spec import BuilderSpec
    from buildkit_tasks.host.builder.store import BuilderRecord, NodeRecord
    from buildkit_tasks.report.model import BuilderSummary, NodeSummary
    from buildkit_tasks.system.notify import Notify

__all__ = ["NodeManager", "extract_ssh_error"]


@dataclass(frozen=True, kw_only=True)
class NodeManager:
    """The nodes of the builder of the settings; with ``can_fall_back``, others replace one that is lost."""

    buildx: Buildx
    spec: BuilderSpec
    can_fall_back: bool
    notify: Notify

    def unreachable(self, nodes: Sequence[NodeSpec]) -> dict[str, str]:
        """Return the nodes that do not respond, with the reason."""
        spec = self.spec
        record = self.buildx.read_record(spec.name) if spec.driver == "auto" else None
        specs = [replace(node, driver_opts=spec.driver_opts_for(node)) for node in nodes]
        return unreachable_nodes(specs, record.driver if record else spec.driver)

    def remove_unreachable(self, record: BuilderRecord | None) -> list[str]:
        """Remove unresponsive nodes from the builder; return their names.

        They are detected after a few seconds; buildx itself waits 35. Raise :class:`BuilderError`
        without ``can_fall_back``, or if no node is left.
        """
        node_records = record.nodes if record else ()
        specs = self.spec.nodes or list(map(_spec_from_record, node_records))
        unreachable = self.unreachable(specs)
        self.drop_or_fail(unreachable, len(specs))
        removed = [node.name for node in node_records if node.name in unreachable]
        for name in removed:
            self.buildx.run_command(*leave_args(self.spec.name, name))
        return removed

    def drop_failed_nodes(self, builder: BuilderSummary) -> BuilderSummary:
        """Remove nodes whose engine buildx cannot reach, by ssh or through a docker context.

        Raise :class:`BuilderError` without ``can_fall_back``, or if no node is left.
        """
        errors = _node_errors(builder.nodes)
        self.drop_or_fail(errors, len(builder.nodes))
        return self.drop_nodes(builder, list(errors)) if errors else builder

    def check_recreatable(self, builder: BuilderSummary) -> None:
        """Raise :class:`BuilderError` if nodes of the settings are unreachable and cannot be replaced."""
        endpoints = {node.endpoint for node in self.spec.nodes}
        errors = _node_errors([node for node in builder.nodes if node.endpoint in endpoints])
        if not self.can_fall_back:
            self.drop_or_fail(errors, len(builder.nodes))

    def drop_or_fail(self, reasons: Mapping[str, str], total: int) -> None:
        """Report nodes that are dropped; raise :class:`BuilderError` if they cannot be.

        ``total`` is the number of nodes, with those in ``reasons``.
        """
        if reasons and (not self.can_fall_back or len(reasons) == total):
            raise BuilderError(
                format_reasons(reasons),
                hint="check that machine, or let the other nodes emulate: --fallback=emulate",
            )
        for name, reason in reasons.items():
            self.notify(f"node {name} is not used, others emulate its platforms: {reason}")

    def drop_nodes(self, builder: BuilderSummary, names: Sequence[str]) -> BuilderSummary:
        """Remove nodes from the builder, whose platforms others then emulate.

        The next ``setup-builder`` adds them again if they are in the settings. Raise
        :class:`BuilderError` if none is left.
        """
        remaining = tuple(node for node in builder.nodes if node.name not in names)
        if not remaining:
            raise BuilderError(f"no node of builder {builder.name!r} answers", hint="inv doctor")
        for name in names:
            self.buildx.run_command(*leave_args(builder.name, name))
        return self.fix_platforms(replace(builder, nodes=remaining))

    def fix_platforms(self, builder: BuilderSummary) -> BuilderSummary:
        """Fix each platform on a node if there are several nodes: see :mod:`.assignment`."""
        requested: dict[str, Sequence[object]] = {node.name: node.fixed for node in builder.nodes}
        requested |= {node.name: node.platforms for node in self.spec.nodes}
        if len(builder.nodes) == 1 and not any(requested.values()) and not builder.nodes[0].fixed:
            return builder
        fixed_by_node = choose_fixed_platforms(builder.nodes, requested)
        for node in builder.nodes:
            if fixed_by_node[node.name] != node.fixed:
                self.buildx.run_command(
                    *fix_platforms_args(builder.name, node.name, node.endpoint, fixed_by_node[node.name])
                )
        nodes = (replace(node, fixed=fixed_by_node[node.name]) for node in builder.nodes)
        return replace(builder, nodes=tuple(nodes))


def _node_errors(nodes: Iterable[NodeSummary]) -> dict[str, str]:
    """Return the nodes for which buildx reports an error, with the reason."""
    return {
        node.name: f"{node.endpoint} cannot be reached: {extract_ssh_error(node.error)}"
        for node in nodes
        if node.error
    }


def extract_ssh_error(message: str) -> str:
    """Return ssh's own message from an error of docker, which quotes it after its command and advice."""
    return message.rpartition("stderr=")[2]


def _spec_from_record(node: NodeRecord) -> NodeSpec:
    """Return the spec of an existing node."""
    driver_opts = tuple(f"{name}={value}" for name, value in node.driver_opts.items())
    return NodeSpec(name=node.name, endpoint=node.endpoint, driver_opts=driver_opts)
