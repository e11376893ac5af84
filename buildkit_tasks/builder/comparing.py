"""A builder that is there, against the one that is asked for: every difference in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.builder.found import Record, RecordedNode
    from buildkit_tasks.builder.wanted import WantedBuilder, WantedNode
    from buildkit_tasks.results import BuilderSummary

__all__ = ["differences"]


def differences(wanted: WantedBuilder, found: BuilderSummary, record: Record | None) -> list[str]:
    """What is not as it is asked for; nothing where nothing is asked.

    A node that is asked for and is not there is no difference: it can be taken in.
    """
    if wanted.driver not in ("auto", found.driver):
        return [f"has driver {found.driver}, and {wanted.driver} is asked for"]
    if record is None:
        asked = wanted.nodes or wanted.options or wanted.config
        return ["is the engine's own, which takes no nodes, options or configuration"] if asked else []
    return list(_of_nodes(wanted, record))


def _of_nodes(wanted: WantedBuilder, record: Record) -> Iterator[str]:
    if wanted.nodes:
        extra = {node.name for node in record.nodes} - {node.name for node in wanted.nodes}
        if extra:
            yield f"has nodes that are not asked for: {', '.join(sorted(extra))}"
        pairs = [(node, record.node(node.name)) for node in wanted.nodes]
    else:
        pairs = [(node, there) for node in wanted.each for there in record.nodes]
    for node, there in pairs:
        if there is not None:
            yield from _of_node(wanted, node, there)


def _of_node(wanted: WantedBuilder, node: WantedNode, there: RecordedNode) -> Iterator[str]:
    where = f"on node {there.name} " if wanted.nodes else ""
    if node.endpoint and node.endpoint != there.endpoint:
        yield f"has node {there.name} at {there.endpoint}, and {node.endpoint} is asked for"
    asked = set(wanted.options_of(node))
    held = {f"{name}={value}" for name, value in there.options.items()}
    if not asked <= held:
        yield (f"has {where}the driver options {_said(held)}, and {_said(asked)} are asked for")
    fixed = {str(platform) for platform in node.platforms}
    if fixed and not fixed <= set(there.platforms):
        yield f"has {where}the platforms {_said(set(there.platforms))}, and {_said(fixed)} are asked for"
    if wanted.config and wanted.config != there.config:
        first = _first(wanted.config, there.config)
        yield f"has {where}another buildkitd.toml than the one that is asked for: {first}"


def _said(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _first(asked: str, held: str) -> str:
    """The first line that only one of two texts has."""
    lines = held.splitlines()
    missing = [line.strip() for line in asked.splitlines() if line not in lines]
    if missing:
        return f"it lacks {missing[0]!r}"
    added = [line.strip() for line in lines if line not in asked.splitlines()]
    return f"it also has {added[0]!r}" if added else "their lines are in another order"
