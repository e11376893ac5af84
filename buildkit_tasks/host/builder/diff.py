"""A builder that is there, against the one that is asked for: every difference in words."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from buildkit_tasks.host.builder.buildx import entitlement
from buildkit_tasks.host.builder.spec import OWN_DAEMON

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.host.builder.spec import WantedBuilder, WantedNode
    from buildkit_tasks.host.builder.store import Record, RecordedNode
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["differences"]

_CERTIFICATES = ("ca", "cert", "key", "keypair", "tlsconfigdir")  # of a registry: buildx moves these


def differences(wanted: WantedBuilder, found: BuilderSummary, record: Record | None) -> list[str]:
    """What is not as it is asked for; nothing where nothing is asked.

    A node that is asked for and is not there is no difference: it can be taken in.
    """
    if wanted.driver not in ("auto", found.driver):
        return [f"has driver {found.driver}, and {wanted.driver} is asked for"]
    if record is None:
        words = "is the engine's own, which takes no nodes, options or configuration"
        return [words] if wanted.demands else []
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
            if record.driver in OWN_DAEMON:
                yield from _of_daemon(wanted, there)


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


def _of_daemon(wanted: WantedBuilder, there: RecordedNode) -> Iterator[str]:
    where = f"on node {there.name} " if wanted.nodes else ""
    lacking = [each for each in wanted.allow if entitlement(each) not in there.flags]
    if lacking:
        yield f"has no right {where}to give builds the entitlements {', '.join(lacking)}"
    other = _first(wanted.config, there.config) if wanted.config else ""
    if other:
        yield f"has {where}another buildkitd.toml than the one that is asked for: {other}"


def _said(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _first(asked: str, held: str) -> str:
    """The first thing that only one of two configurations says, or says otherwise; empty if there is none.

    buildx keeps what a file means, not how it was written, and puts certificates in places of its own.
    """
    new, old = dict(_said_by(tomllib.loads(asked))), dict(_said_by(tomllib.loads(held)))
    for key in sorted(new.keys() | old.keys()):
        if key not in old:
            return f"it lacks {key} = {new[key]}"
        if key not in new:
            return f"it also has {key} = {old[key]}"
        if new[key] != old[key]:
            return f"it has {key} = {old[key]}, not {new[key]}"
    return ""


def _said_by(table: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a configuration, by its dotted key."""
    for name, value in table.items():
        key = f"{within}{name}"
        if isinstance(value, dict):
            yield from _said_by(value, f"{key}.")
        elif not (key.startswith("registry.") and name in _CERTIFICATES):
            yield key, json.dumps(value, default=str)
