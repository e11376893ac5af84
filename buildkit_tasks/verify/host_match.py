"""Whether an image would start on a host: the question of a user whose pod says `exec format error`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, best_match, parse_platforms
from buildkit_tasks.report.model import Check
from buildkit_tasks.verify.index import names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fit_check", "hosts_of", "promised_to", "read_nodes"]

_NODES = "kubectl get nodes -o json > nodes.json"
_MAX_NODES = 64 << 20  # bytes: a cluster of 5,000 nodes prints some 50 MB


def hosts_of(names: Sequence[str], nodes: str) -> dict[Platform, int]:
    """The platforms to start on: those named, and those of a cluster with their number of nodes."""
    return {**dict.fromkeys(parse_platforms(names), 0), **(read_nodes(Path(nodes)) if nodes else {})}


def read_nodes(path: Path) -> dict[Platform, int]:
    """How many nodes of each platform a cluster has, from what ``kubectl get nodes -o json`` prints.

    Kubernetes API, ``v1.Node``: ``status.nodeInfo.operatingSystem`` and ``.architecture``, which are
    Go's names; a variant is not stated there. Raises :class:`UsageError` for anything else.
    """
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_NODES))
        items = document.get("items", [document])
        found = Counter(_node(item) for item in items)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=_NODES) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} does not hold the nodes of a cluster as JSON", hint=_NODES) from error
    if not found:
        raise UsageError(f"{path} holds no node", hint=_NODES)
    return dict(found)


def _node(item: Any) -> Platform:
    info = item["status"]["nodeInfo"]
    return Platform.normalised(str(info["operatingSystem"]), str(info["architecture"]))


def fit_check(
    host: Platform, found: Sequence[Platform], subject: str, nodes: int = 0
) -> tuple[Platform | None, Check]:
    """Which of an image's platforms a host takes, and the check ``for`` that says so."""
    chosen = best_match(host, found)
    where = f"{nodes} {host} node{'s' if nodes != 1 else ''}" if nodes else str(host)
    held = names_of(found) or "no platform"
    if chosen is None:
        message = (
            f'{where} cannot start {subject}: it holds {held}. An index without {host} gives "no match for '
            f'platform in manifest", a single image of another architecture "exec format error".\n'
            f"next: {_next(host, found)}"
        )
    elif chosen == host:
        message = f"{where} takes {chosen}"
    else:
        message = f"{where} takes {chosen}, which it runs as well"
    return chosen, Check(
        name="for", ok=chosen is not None, expected=str(host), actual=str(chosen or held), message=message
    )


def promised_to(host: Platform, chosen: Platform | None) -> Platform | None:
    """The platform as which a host's choice is judged: its own, if that is of the same architecture.

    What is built for a later level than the image says still starts on a host of that level.
    """
    same = chosen is not None and chosen.architecture == host.architecture
    return host if same else chosen


def _next(host: Platform, found: Sequence[Platform]) -> str:
    platforms = ",".join(map(str, dict.fromkeys((*found, host))))
    return f"inv build-multiarch --platform {platforms} --push -t NAME:TAG"
