"""Which node builds which platform: the one whose own machine it is, else one that emulates it.

buildx looks at nodes' fixed platforms first, and only if *every* platform of a build is fixed on some
node; otherwise it takes the first node that can do a platform at all, emulated or not. So every platform
that a builder of several nodes can do is fixed on one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.platforms import Platform, satisfies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from buildkit_tasks.report.model import BuilderSummary, NodeSummary

__all__ = ["Assignment", "assign", "fixed_platforms", "is_native", "native_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The node that builds a platform, and whether that is its machine's own."""

    platform: Platform
    node: str
    native: bool


def assign(platforms: Iterable[Platform], builder: BuilderSummary) -> tuple[Assignment, ...]:
    """The node of each platform. Raises :class:`BuilderError` for one that no node builds."""
    return tuple(_assigned(platform, builder) for platform in platforms)


def _assigned(platform: Platform, builder: BuilderSummary) -> Assignment:
    if builder.driver == "docker" or not builder.nodes:  # the engine's own, or what a dry run would make
        own = builder.nodes[0] if builder.nodes else None
        native = own is not None and is_native(own, platform)
        return Assignment(platform=platform, node=own.name if own else "", native=native)
    offering = [node for node in builder.nodes if str(platform) in node.platforms]
    fixed = [node for node in offering if str(platform) in node.fixed]
    if not offering:
        held = "; ".join(f"{node.name}: {node.error or ', '.join(node.platforms)}" for node in builder.nodes)
        raise BuilderError(
            f"no node of builder {builder.name!r} builds it ({held})",
            platform=platform,
            hint="inv setup-builder, or add a node for it: --node name=...,endpoint=...",
        )
    node = (fixed or [each for each in offering if is_native(each, platform)] or offering)[0]
    return Assignment(platform=platform, node=node.name, native=is_native(node, platform))


def is_native(node: NodeSummary, platform: Platform) -> bool:
    """Whether a node's own machine runs that platform's programs."""
    return bool(node.native) and satisfies(read_platform(node.native), platform)


def read_platform(name: str) -> Platform:
    """A platform as BuildKit writes it, which may be none of the table."""
    return Platform.normalised(*name.split("/"))


def native_of(node: NodeSummary) -> str:
    """The platform of a node's machine: BuildKit names it first, if none is fixed."""
    return "" if node.fixed or not node.platforms else node.platforms[0]


def fixed_platforms(
    nodes: Sequence[NodeSummary], asked: Mapping[str, Sequence[object]]
) -> dict[str, tuple[str, ...]]:
    """The platforms to fix on each node, so that buildx chooses as :func:`assign` does.

    ``asked`` are those that somebody wants on a node: they are taken as they are. Of the others each
    node for which nothing is asked gets its machine's own, and what is left goes to the first node
    that emulates it.
    """
    chosen: dict[str, list[str]] = {node.name: list(map(str, asked.get(node.name, ()))) for node in nodes}
    taken = {name for names in chosen.values() for name in names}
    free = [node for node in nodes if not chosen[node.name]]
    for wanted, candidates in ((is_native, free), (_offers, free), (_offers, nodes)):
        for node in candidates:
            for name in node.platforms:
                if name not in taken and wanted(node, read_platform(name)):
                    chosen[node.name].append(name)
                    taken.add(name)
    return {name: tuple(names) for name, names in chosen.items()}


def _offers(node: NodeSummary, platform: Platform) -> bool:
    return str(platform) in node.platforms
