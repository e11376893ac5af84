"""Check whether an image would start on a host: the cause of ``exec format error`` in a pod."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError
from buildkit_tasks.hints import translate_commands
from buildkit_tasks.platforms import (
    Platform,
    accepted_platforms,
    find_best_match,
    known_platforms,
    parse_platforms,
)
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import pluralise
from buildkit_tasks.verify.index import join_platforms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["baseline_for", "match_hosts", "read_cluster_nodes", "read_hosts"]

_NODES_COMMAND = "kubectl get nodes -o json > nodes.json"
_SELECTOR_HINT = (
    "keep the pods on other nodes, with a nodeSelector of kubernetes.io/os and kubernetes.io/arch"
)
_REGISTRY_PREFIX = "docker://"
_MAX_NODES_SIZE = 64 << 20  # bytes; 5,000 nodes take about 50 MB


def read_hosts(names: Sequence[str], nodes_file: str) -> dict[Platform, int]:
    """Return the named platforms, with 0, and those of a cluster, with their number of nodes."""
    return {
        **dict.fromkeys(parse_platforms(names), 0),
        **(read_cluster_nodes(Path(nodes_file)) if nodes_file else {}),
    }


def read_cluster_nodes(path: Path) -> dict[Platform, int]:
    """Return the number of nodes of each platform in the output of ``kubectl get nodes -o json``.

    Kubernetes API, ``v1.Node``: ``status.nodeInfo.operatingSystem`` and ``.architecture`` are Go's names;
    variants are not stated. Raise :class:`UsageError` for any other content.
    """
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_NODES_SIZE))
        items = document.get("items", [document])
        node_counts = Counter(_node_platform(item) for item in items)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=_NODES_COMMAND) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path} does not hold the nodes of a cluster as JSON", hint=_NODES_COMMAND
        ) from error
    if not node_counts:
        raise UsageError(f"{path} holds no nodes", hint=_NODES_COMMAND)
    return dict(node_counts)


def _node_platform(item: Any) -> Platform:
    info = item["status"]["nodeInfo"]
    return Platform.normalize(str(info["operatingSystem"]), str(info["architecture"]))


def match_hosts(
    hosts: Mapping[Platform, int], available: Sequence[Platform], subject: str
) -> dict[Platform, tuple[Platform | None, Check]]:
    """Return the platform of the image that each host selects, if any, and the check ``for``.

    ``hosts`` are the hosts with their number of nodes, or 0. The hint of the checks that fail is one for all
    of them: what makes the image start on every host that can be built for.
    """
    selections = {host: find_best_match(host, available) for host in hosts}
    missing = [host for host, selected in selections.items() if selected is None]
    hint = _suggest_build(missing, available, subject)
    return {
        host: (
            selected,
            _check_match(host, selected, hosts[host])
            if selected is not None
            else _check_mismatch(host, hosts[host], available, subject, hint),
        )
        for host, selected in selections.items()
    }


def _check_match(host: Platform, selected: Platform, node_count: int) -> Check:
    verb = "take" if node_count > 1 else "takes"
    note = "" if selected == host else ", a compatible platform"
    variant_note = _explain_variant(host, node_count)
    return Check(
        name="for", ok=True, warning=bool(variant_note), expected=str(host), actual=str(selected),
        message=f"{_describe_host(host, node_count)} {verb} {selected}{note}{variant_note}",
    )  # fmt: skip


def _check_mismatch(
    host: Platform, node_count: int, available: Sequence[Platform], subject: str, hint: str
) -> Check:
    available_text = join_platforms(available) or "no platform"
    message = (
        f"{_describe_host(host, node_count)} cannot start {subject}: it holds {available_text}. "
        f'An index without {host} gives "no match for platform in manifest", a single image of another '
        f'architecture "exec format error"{_explain_variant(host, node_count)}'
    )
    if not _is_buildable(host):
        message, hint = f"{message}. Images for {host} are not built here", _SELECTOR_HINT
    return Check(name="for", ok=False, expected=str(host), actual=available_text, message=message, hint=hint)


def _describe_host(host: Platform, node_count: int) -> str:
    return pluralise(node_count, f"{host} node", f"{host} nodes") if node_count else str(host)


def _explain_variant(host: Platform, node_count: int) -> str:
    """Return a note about a node whose variant was assumed, as nodes state none: arm is ``linux/arm/v7``."""
    names = [level.name for level in host.machine.variants] if node_count and host.is_known else []
    older = names[: names.index(host.variant)] if host.variant in names else []
    if not older:
        return ""
    older_host = Platform(host.os, host.architecture, older[-1])
    nodes = "a node states" if node_count == 1 else "nodes state"
    return f"; {nodes} no variant: taken as {host}; --for {older_host} for older ones"


def baseline_for(host: Platform, selected: Platform | None) -> Platform | None:
    """Return the platform to check the selected one as: what the host's CPU is for that architecture.

    A binary that needs more than the platform it is labelled with still starts on a host that has it: an
    arm64 CPU is an ARMv8 one for arm, and an x86-64-v3 one has these instructions in 32-bit programs too.
    """
    if selected is None:
        return None
    level = host.baseline.title if host.baseline else ""
    if selected.architecture != host.architecture and level in _list_level_names(selected):
        return Platform(selected.os, selected.architecture, level)
    accepted = accepted_platforms(host)  # the preferred ones, which are the highest levels, first
    return next((each for each in accepted if each.architecture == selected.architecture), selected)


def _list_level_names(platform: Platform) -> list[str]:
    return [level.name for level in platform.machine.isa_levels] if platform.is_known else []


def _suggest_build(missing: Sequence[Platform], available: Sequence[Platform], subject: str) -> str:
    """Return the command that builds what the image has and what is missing, as far as it can be built.

    An image in a registry is replaced, unless that would take away a platform that cannot be built here.
    """
    platforms = [each for each in dict.fromkeys((*available, *missing)) if _is_buildable(each)]
    command = f"inv build-multiarch --platform {','.join(map(str, platforms))}"
    is_replaced = subject.startswith(_REGISTRY_PREFIX) and all(map(_is_buildable, available))
    tag = subject.removeprefix(_REGISTRY_PREFIX).partition("@")[0]
    return translate_commands(f"{command} --push -t {shlex.quote(tag)}" if is_replaced else command)


def _is_buildable(platform: Platform) -> bool:
    return platform in known_platforms()
