"""buildx builders: what is asked for, what is there, and the way from one to the other."""

from __future__ import annotations

from buildkit_tasks.host.builder.assignment import Assignment, assign
from buildkit_tasks.host.builder.health import Watch, watch_nodes
from buildkit_tasks.host.builder.manager import Builders, require_index
from buildkit_tasks.host.builder.probe import prove
from buildkit_tasks.host.builder.spec import ELSEWHERE
from buildkit_tasks.host.builder.store import is_elsewhere, parse_inspect

__all__ = [
    "ELSEWHERE",
    "Assignment",
    "Builders",
    "Watch",
    "assign",
    "is_elsewhere",
    "parse_inspect",
    "prove",
    "require_index",
    "watch_nodes",
]
