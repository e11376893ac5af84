"""Assign each platform to a node: one that runs it natively, else one that emulates it.

buildx considers the platforms that are fixed on nodes (``create --platform``) first, but only if *every*
platform of a build is fixed on some node; otherwise it takes the first node that supports a platform,
emulated or not. So with several nodes, every platform that they support is fixed on one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.platforms import Platform, is_compatible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from buildkit_tasks.report.model import BuilderSummary, NodeSummary

__all__ = ["Assignment", "assign_nodes", "choose_fixed_platforms", "infer_native_platform", "is_native"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The node that builds a platform, and whether natively."""

    platform: Platform
    node: str
    is_native: bool


def assign_nodes(platforms: Iterable[Platform], builder: BuilderSummary) -> tuple[Assignment, ...]:
    """Return the node of each platform. Raise :class:`BuilderError` if no node can build one."""
    return tuple(_assign_node(platform, builder) for platform in platforms)


def _assign_node(platform: Platform, builder: BuilderSummary) -> Assignment:
    if (
        builder.driver == "docker" or not builder.nodes
    ):  # the engine's own, or one that a dry run would create
        engine_node = builder.nodes[0] if builder.nodes else None
        native = engine_node is not None and is_native(engine_node, platform)
        return Assignment(platform=platform, node=engine_node.name if engine_node else "", is_native=native)
    candidates = [node for node in builder.nodes if str(platform) in node.platforms]
    fixed_nodes = [node for node in candidates if str(platform) in node.fixed]
    if not candidates:
        offers = "; ".join(
            f"{node.name}: {node.error or ', '.join(node.platforms)}" for node in builder.nodes
        )
        raise BuilderError(
            f"no node of builder {builder.name!r} can build it ({offers})",
            platform=platform,
            hint="inv setup-builder, or add a node for it: --node name=...,endpoint=...",
        )
    node = (fixed_nodes or [node for node in candidates if is_native(node, platform)] or candidates)[0]
    return Assignment(platform=platform, node=node.name, is_native=is_native(node, platform))


def is_native(node: NodeSummary, platform: Platform) -> bool:
    """Return True if the node's machine runs the platform's programs without emulation."""
    return bool(node.native) and is_compatible(parse_node_platform(node.native), platform)


def parse_node_platform(name: str) -> Platform:
    """Parse a platform as BuildKit writes it; it need not be in the table of architectures."""
    return Platform.normalize(*name.split("/"))


def infer_native_platform(node: NodeSummary) -> str:
    """Return the platform of a node's machine: the first that BuildKit lists, unless some are fixed."""
    return "" if node.fixed or not node.platforms else node.platforms[0]


def choose_fixed_platforms(
    nodes: Sequence[NodeSummary], requested: Mapping[str, Sequence[object]]
) -> dict[str, tuple[str, ...]]:
    """Return the platforms to fix on each node, so that buildx chooses as :func:`assign_nodes` does.

    The platforms in ``requested`` are fixed on their nodes. Of the others, each node without a request
    gets those that it runs natively; the rest go to the first node that emulates them.
    """
    fixed_by_node: dict[str, list[str]] = {
        node.name: list(map(str, requested.get(node.name, ()))) for node in nodes
    }
    assigned = {name for names in fixed_by_node.values() for name in names}
    unassigned_nodes = [node for node in nodes if not fixed_by_node[node.name]]
    for is_eligible, candidates in (
        (is_native, unassigned_nodes),
        (_can_build, unassigned_nodes),
        (_can_build, nodes),
    ):
        for node in candidates:
            for name in node.platforms:
                if name not in assigned and is_eligible(node, parse_node_platform(name)):
                    fixed_by_node[node.name].append(name)
                    assigned.add(name)
    return {name: tuple(names) for name, names in fixed_by_node.items()}


def _can_build(node: NodeSummary, platform: Platform) -> bool:
    return str(platform) in node.platforms
