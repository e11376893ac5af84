"""buildx builders: what is asked for, what is there, and the way from one to the other."""

from __future__ import annotations

from buildkit_tasks.builder.assigning import Assignment, assign
from buildkit_tasks.builder.builders import Builders, require_index
from buildkit_tasks.builder.found import parse_inspect
from buildkit_tasks.builder.proving import prove
from buildkit_tasks.builder.reaching import Watch, watch_nodes
from buildkit_tasks.builder.store import is_elsewhere
from buildkit_tasks.builder.wanted import ELSEWHERE

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
