"""Compare an existing builder with its spec, and describe every difference."""

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

# Keys of registry tables whose values are files: buildx copies them and changes the paths.
_CERTIFICATE_KEYS = ("ca", "cert", "key", "keypair", "tlsconfigdir")


def diff_builder(spec: BuilderSpec, builder: BuilderSummary, record: BuilderRecord | None) -> list[str]:
    """Return the differences from what the spec requires, as predicates such as "has driver docker ...".

    A missing node is not a difference, because it can be added.
    """
    if spec.driver not in ("auto", builder.driver):
        return [f"has driver {builder.driver} instead of {spec.driver}"]
    if record is None:
        message = "is the engine's own builder, which has no nodes, options or configuration"
        return [message] if spec.has_requirements else []
    return list(_diff_nodes(spec, record))


def _diff_nodes(spec: BuilderSpec, record: BuilderRecord) -> Iterator[str]:
    if spec.nodes:
        extra = {node.name for node in record.nodes} - {node.name for node in spec.nodes}
        if extra:
            yield f"has nodes that are not in the settings: {', '.join(sorted(extra))}"
        pairs = [(node, record.find_node(node.name)) for node in spec.nodes]
    else:
        pairs = [(node, existing) for node in spec.effective_nodes for existing in record.nodes]
    for node, existing in pairs:
        if existing is not None:
            yield from _diff_node(spec, node, existing)
            if record.driver in MANAGED_DRIVERS:
                yield from _diff_daemon(spec, existing)


def _diff_node(spec: BuilderSpec, node: NodeSpec, existing: NodeRecord) -> Iterator[str]:
    if node.endpoint and node.endpoint != existing.endpoint:
        yield f"has node {existing.name} at {existing.endpoint} instead of {node.endpoint}"
    driver_opts = {f"{name}={value}" for name, value in existing.driver_opts.items()}
    platforms = {str(platform) for platform in node.platforms}
    for name, requested, actual in (
        ("driver options", set(spec.driver_opts_for(node)), driver_opts),
        ("platforms", platforms, set(existing.platforms)),
    ):
        if not requested <= actual:
            values = f"{_format_values(actual)} instead of {_format_values(requested)}"
            yield f"has {_on_node(spec, existing)}the {name} {values}"


def _diff_daemon(spec: BuilderSpec, existing: NodeRecord) -> Iterator[str]:
    on_node = _on_node(spec, existing)
    missing = [name for name in spec.entitlements if entitlement_flag(name) not in existing.buildkitd_flags]
    if missing:
        yield f"does not allow {on_node}the entitlements {', '.join(missing)}"
    if not spec.buildkitd_toml:
        return
    difference = _find_config_difference(spec.buildkitd_toml, existing.buildkitd_toml)
    if difference:
        yield f"has {on_node}another buildkitd.toml: {difference}"


def _on_node(spec: BuilderSpec, existing: NodeRecord) -> str:
    return f"on node {existing.name} " if spec.nodes else ""


def _format_values(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _find_config_difference(requested: str, actual: str) -> str:
    """Describe the first key that is missing, extra or different; return an empty string if there is none.

    Values are compared, not texts: buildx writes the file in its own format.
    """
    requested_values, actual_values = (
        dict(_flatten_toml(tomllib.loads(text))) for text in (requested, actual)
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
    """Yield every value with its dotted key."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten_toml(value, f"{key}.")
        elif not (key.startswith("registry.") and name in _CERTIFICATE_KEYS):
            yield key, json.dumps(value, default=str)
