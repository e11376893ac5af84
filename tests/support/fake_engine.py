"""An engine whose commands are scripted."""

from __future__ import annotations

from typing import Any

from buildkit_tasks.host.engine.daemon import ClientTools, Engine
from buildkit_tasks.platforms import Platform


def make_engine(**changes: Any) -> Engine:
    """Return a local engine with the containerd store, changed by fields of ``Engine``."""
    fields: dict[str, Any] = {
        "kind": "system",
        "endpoint": "unix:///x",
        "version": "28",
        "store": "containerd",
        "platform": Platform.parse("linux/amd64"),
        "is_local": True,
        "tools": ClientTools(docker=("docker",), buildx=("docker", "buildx")),
    }
    return Engine(**fields | changes)
