"""Create, compare, repair and remove buildx builders."""

from __future__ import annotations

from buildkit_tasks.host.builder.assignment import Assignment, assign_nodes
from buildkit_tasks.host.builder.health import NodeWatchdog, watch_nodes
from buildkit_tasks.host.builder.manager import BuilderManager, require_index
from buildkit_tasks.host.builder.probe import probe_platforms
from buildkit_tasks.host.builder.spec import REMOTE_DRIVERS
from buildkit_tasks.host.builder.store import is_remote, parse_inspect_output

__all__ = [
    "REMOTE_DRIVERS",
    "Assignment",
    "BuilderManager",
    "NodeWatchdog",
    "assign_nodes",
    "is_remote",
    "parse_inspect_output",
    "probe_platforms",
    "require_index",
    "watch_nodes",
]
