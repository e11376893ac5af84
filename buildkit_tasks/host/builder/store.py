"""What buildx's store and ``docker buildx inspect`` say of a builder.

The record (``instances/NAME``) is the JSON of buildx's ``store.NodeGroup``: it holds what was asked for
when the builder was created, where the printed form has only a part of it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.spec import ELSEWHERE
from buildkit_tasks.host.engine.daemon import docker_config_folder
from buildkit_tasks.report.model import BuilderSummary, NodeSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.config.settings import Settings

__all__ = [
    "Record",
    "RecordedNode",
    "is_elsewhere",
    "parse_inspect",
    "read_record",
    "record_of",
]


def record_of(name: str, env: Mapping[str, str]) -> Path:
    """The file with the record of a builder of that name, for a client with this environment added."""
    folder = env.get("BUILDX_CONFIG") or os.environ.get("BUILDX_CONFIG")
    return (Path(folder) if folder else docker_config_folder() / "buildx") / "instances" / name


def is_elsewhere(settings: Settings) -> bool:
    """Whether the builder's BuildKit runs where no Docker engine of ours is needed.

    It is asked for so, or the user's own store has a builder of that name that is.
    """
    if settings.driver != "auto":
        return settings.driver in ELSEWHERE
    record = read_record(record_of(settings.name, {}))
    return record is not None and record.driver in ELSEWHERE


_CONFIG = "buildkitd.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedNode:
    """A node as it was made: its driver's options by name, its buildkitd.toml and buildkitd's options."""

    name: str
    endpoint: str
    platforms: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A builder as it was made."""

    driver: str
    nodes: tuple[RecordedNode, ...]

    def node(self, name: str) -> RecordedNode | None:
        """The node of that name."""
        return next((node for node in self.nodes if node.name == name), None)


def read_record(path: Path) -> Record | None:
    """The record in that file, or None if there is none.

    Raises :class:`BuilderError` that names the file where it holds something else, as after a full disk.
    """
    try:
        document = json.loads(path.read_bytes())
        return Record(driver=document["Driver"], nodes=tuple(map(_recorded, document["Nodes"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BuilderError(
            f"buildx's record of builder {path.name!r} cannot be read: {path}: {error}",
            hint=f"look into {path}; removed, the builder can be made anew: inv setup-builder",
        ) from error


def _recorded(node: Mapping[str, Any]) -> RecordedNode:
    files = node.get("Files") or {}
    stated = (_spelled(platform) for platform in node.get("Platforms") or ())
    return RecordedNode(
        name=node["Name"],
        endpoint=node["Endpoint"],
        platforms=tuple(stated),
        options=dict(node.get("DriverOpts") or {}),
        config=base64.b64decode(files.get(_CONFIG, "")).decode(errors="replace"),
        flags=tuple(node.get("Flags") or ()),
    )


def _spelled(platform: Mapping[str, str]) -> str:
    parts = (platform.get(key, "") for key in ("os", "architecture", "variant"))
    return "/".join(part for part in parts if part)


def parse_inspect(text: str) -> BuilderSummary:
    """Read ``docker buildx inspect``: a block for the builder, then one for each node."""
    head, _, tail = text.partition("\nNodes:")
    values = _fields(head)
    nodes = [_fields(block) for block in re.split(r"\n(?=Name:)", tail) if block.strip()]
    return BuilderSummary(
        name=values.get("Name", ""), driver=values.get("Driver", ""), nodes=tuple(map(_node, nodes))
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines() if re.match(r"[A-Z][\w ]*:", line))
    return {key: value.strip() for key, _, value in pairs}


def _node(values: Mapping[str, str]) -> NodeSummary:
    names = [name.strip(" *") for name in values.get("Platforms", "").split(",")]
    return NodeSummary(
        name=values.get("Name", ""),
        endpoint=values.get("Endpoint", ""),
        status=values.get("Status", ""),
        version=values.get("BuildKit version", ""),
        platforms=tuple(name for name in names if name),
        driver_opt=tuple(shlex.split(values.get("Driver Options", ""))),
        error=values.get("Error", ""),
    )
