"""Check whether an image would start on a host: the cause of ``exec format error`` in a pod."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, find_best_match, parse_platforms
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import pluralise
from buildkit_tasks.verify.index import join_platforms

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["baseline_for", "match_host", "read_cluster_nodes", "read_hosts"]

_NODES_COMMAND = "kubectl get nodes -o json > nodes.json"
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


def match_host(
    host: Platform, available: Sequence[Platform], subject: str, node_count: int = 0
) -> tuple[Platform | None, Check]:
    """Return the platform of the image that a host selects, if any, and the check ``for``."""
    selected = find_best_match(host, available)
    host_text = pluralise(node_count, f"{host} node", f"{host} nodes") if node_count else str(host)
    available_text = join_platforms(available) or "no platform"
    if selected is None:
        message = (
            f"{host_text} cannot start {subject}: it holds {available_text}. An index without {host} "
            'gives "no match for platform in manifest", a single image of another architecture '
            f'"exec format error".\ntry: {_suggest_build(host, available)}'
        )
    else:
        verb, note = (
            "take" if node_count > 1 else "takes",
            "" if selected == host else ", a compatible platform",
        )
        message = f"{host_text} {verb} {selected}{note}"
    actual = str(selected or available_text)
    return selected, Check(
        name="for", ok=selected is not None, expected=str(host), actual=actual, message=message
    )


def baseline_for(host: Platform, selected: Platform | None) -> Platform | None:
    """Return the platform to check the selected one as: the host's, if the architecture is the same.

    A binary that needs more than the platform it is labelled with still starts on a host that has it.
    """
    is_same_architecture = selected is not None and selected.architecture == host.architecture
    return host if is_same_architecture else selected


def _suggest_build(host: Platform, available: Sequence[Platform]) -> str:
    platforms = ",".join(map(str, dict.fromkeys((*available, host))))
    return f"inv build-multiarch --platform {platforms} --push -t NAME:TAG"
