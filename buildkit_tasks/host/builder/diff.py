"""A builder that is there, against the one that is asked for: every difference in words."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from buildkit_tasks.host.builder.buildx import entitlement_flag
from buildkit_tasks.host.builder.spec import MANAGED_DRIVERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.host.builder.spec import BuilderSpec, NodeSpec
    from buildkit_tasks.host.builder.store import BuilderRecord, NodeRecord
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["diff_builder"]

_CERTIFICATE_KEYS = ("ca", "cert", "key", "keypair", "tlsconfigdir")  # of a registry: buildx moves these


def diff_builder(spec: BuilderSpec, builder: BuilderSummary, record: BuilderRecord | None) -> list[str]:
    """What is not as it is asked for; nothing where nothing is asked.

    A node that is asked for and is not there is no difference: it can be taken in.
    """
    if spec.driver not in ("auto", builder.driver):
        return [f"has driver {builder.driver}, and {spec.driver} is asked for"]
    if record is None:
        message = "is the engine's own, which takes no nodes, options or configuration"
        return [message] if spec.has_requirements else []
    return list(_diff_nodes(spec, record))


def _diff_nodes(spec: BuilderSpec, record: BuilderRecord) -> Iterator[str]:
    if spec.nodes:
        extra = {node.name for node in record.nodes} - {node.name for node in spec.nodes}
        if extra:
            yield f"has nodes that are not asked for: {', '.join(sorted(extra))}"
        pairs = [(node, record.find_node(node.name)) for node in spec.nodes]
    else:
        pairs = [(node, existing) for node in spec.effective_nodes for existing in record.nodes]
    for node, existing in pairs:
        if existing is not None:
            yield from _diff_node(spec, node, existing)
            if record.driver in MANAGED_DRIVERS:
                yield from _diff_daemon(spec, existing)


def _diff_node(spec: BuilderSpec, node: NodeSpec, existing: NodeRecord) -> Iterator[str]:
    on_node = f"on node {existing.name} " if spec.nodes else ""
    if node.endpoint and node.endpoint != existing.endpoint:
        yield f"has node {existing.name} at {existing.endpoint}, and {node.endpoint} is asked for"
    requested = set(spec.driver_opts_for(node))
    actual = {f"{name}={value}" for name, value in existing.driver_opts.items()}
    if not requested <= actual:
        yield (
            f"has {on_node}the driver options {_format_values(actual)}, and "
            f"{_format_values(requested)} are asked for"
        )
    requested_platforms = {str(platform) for platform in node.platforms}
    if requested_platforms and not requested_platforms <= set(existing.platforms):
        yield (
            f"has {on_node}the platforms {_format_values(set(existing.platforms))}, and "
            f"{_format_values(requested_platforms)} are asked for"
        )


def _diff_daemon(spec: BuilderSpec, existing: NodeRecord) -> Iterator[str]:
    on_node = f"on node {existing.name} " if spec.nodes else ""
    missing = [each for each in spec.entitlements if entitlement_flag(each) not in existing.buildkitd_flags]
    if missing:
        yield f"has no right {on_node}to give builds the entitlements {', '.join(missing)}"
    difference = (
        _find_config_difference(spec.buildkitd_toml, existing.buildkitd_toml) if spec.buildkitd_toml else ""
    )
    if difference:
        yield f"has {on_node}another buildkitd.toml than the one that is asked for: {difference}"


def _format_values(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _find_config_difference(requested: str, actual: str) -> str:
    """The first thing that only one of two configurations says, or says otherwise; empty if there is none.

    buildx keeps what a file means, not how it was written, and puts certificates in places of its own.
    """
    requested_values, actual_values = (
        dict(_flatten_toml(tomllib.loads(requested))),
        dict(_flatten_toml(tomllib.loads(actual))),
    )
    for key in sorted(requested_values.keys() | actual_values.keys()):
        if key not in actual_values:
            return f"it lacks {key} = {requested_values[key]}"
        if key not in requested_values:
            return f"it also has {key} = {actual_values[key]}"
        if requested_values[key] != actual_values[key]:
            return f"it has {key} = {actual_values[key]}, not {requested_values[key]}"
    return ""


def _flatten_toml(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a configuration, by its dotted key."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten_toml(value, f"{key}.")
        elif not (key.startswith("registry.") and name in _CERTIFICATE_KEYS):
            yield key, json.dumps(value, default=str)
