"""Which node builds which platform: the one whose own machine it is, else one that emulates it.

buildx looks at nodes' fixed platforms first, and only if *every* platform of a build is fixed on some
node; otherwise it takes the first node that can do a platform at all, emulated or not. So every platform
that a builder of several nodes can do is fixed on one of them.
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
    """The node that builds a platform, and whether that is its machine's own."""

    platform: Platform
    node: str
    is_native: bool


def assign_nodes(platforms: Iterable[Platform], builder: BuilderSummary) -> tuple[Assignment, ...]:
    """The node of each platform. Raises :class:`BuilderError` for one that no node builds."""
    return tuple(_assign_node(platform, builder) for platform in platforms)


def _assign_node(platform: Platform, builder: BuilderSummary) -> Assignment:
    if builder.driver == "docker" or not builder.nodes:  # the engine's own, or what a dry run would make
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
            f"no node of builder {builder.name!r} builds it ({offers})",
            platform=platform,
            hint="inv setup-builder, or add a node for it: --node name=...,endpoint=...",
        )
    node = (fixed_nodes or [each for each in candidates if is_native(each, platform)] or candidates)[0]
    return Assignment(platform=platform, node=node.name, is_native=is_native(node, platform))


def is_native(node: NodeSummary, platform: Platform) -> bool:
    """Whether a node's own machine runs that platform's programs."""
    return bool(node.native) and is_compatible(parse_node_platform(node.native), platform)


def parse_node_platform(name: str) -> Platform:
    """A platform as BuildKit writes it, which may be none of the table."""
    return Platform.normalize(*name.split("/"))


def infer_native_platform(node: NodeSummary) -> str:
    """The platform of a node's machine: BuildKit names it first, if none is fixed."""
    return "" if node.fixed or not node.platforms else node.platforms[0]


def choose_fixed_platforms(
    nodes: Sequence[NodeSummary], requested: Mapping[str, Sequence[object]]
) -> dict[str, tuple[str, ...]]:
    """The platforms to fix on each node, so that buildx chooses as :func:`assign` does.

    ``asked`` are those that somebody wants on a node: they are taken as they are. Of the others each
    node for which nothing is asked gets its machine's own, and what is left goes to the first node
    that emulates it.
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
