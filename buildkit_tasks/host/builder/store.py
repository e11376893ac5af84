"""Read buildx's store and the output of ``docker buildx inspect``.

The record ``instances/NAME`` is the JSON of buildx's ``store.NodeGroup``. It has everything with which the
builder was created; ``inspect`` prints only a part of it.
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
from buildkit_tasks.host.builder.spec import REMOTE_DRIVERS
from buildkit_tasks.host.engine.daemon import docker_config_folder
from buildkit_tasks.report.model import BuilderSummary, NodeSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.config.settings import Settings

__all__ = [
    "BuilderRecord",
    "NodeRecord",
    "is_remote",
    "parse_inspect_output",
    "read_record",
    "record_path",
]


def record_path(name: str, env: Mapping[str, str]) -> Path:
    """Return the path of a builder's record; ``env`` is added to the process's environment."""
    folder = env.get("BUILDX_CONFIG") or os.environ.get("BUILDX_CONFIG")
    return (Path(folder) if folder else docker_config_folder() / "buildx") / "instances" / name


def is_remote(settings: Settings) -> bool:
    """Return True if the builder's BuildKit does not need a Docker engine.

    The driver of the settings decides, or for ``auto`` that of the user's builder of that name.
    """
    if settings.driver != "auto":
        return settings.driver in REMOTE_DRIVERS
    record = read_record(record_path(settings.name, {}))
    return record is not None and record.driver in REMOTE_DRIVERS


_CONFIG_FILE = "buildkitd.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node as it was created."""

    name: str
    endpoint: str
    platforms: tuple[str, ...] = ()
    driver_opts: Mapping[str, str] = field(default_factory=dict)
    buildkitd_toml: str = ""
    buildkitd_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderRecord:
    """A builder as it was created."""

    driver: str
    nodes: tuple[NodeRecord, ...]

    def find_node(self, name: str) -> NodeRecord | None:
        """Return the node of that name, or None."""
        return next((node for node in self.nodes if node.name == name), None)


def read_record(path: Path) -> BuilderRecord | None:
    """Read a builder's record; return None if the file does not exist, or is in a directory of another user.

    Raise :class:`BuilderError` for a damaged file, as after a full disk.
    """
    try:
        document = json.loads(path.read_bytes())
        return BuilderRecord(
            driver=document["Driver"], nodes=tuple(map(_parse_node_record, document["Nodes"]))
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        if not os.access(path.parent, os.X_OK):
            return None
        raise _record_error(path, error) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _record_error(path, error) from error


def _record_error(path: Path, error: Exception) -> BuilderError:
    return BuilderError(
        f"buildx's record of builder {path.name!r} cannot be read: {path}: {error}",
        hint=f"check {path}, or remove it and create the builder again: inv setup-builder",
    )


def _parse_node_record(node: Mapping[str, Any]) -> NodeRecord:
    files = node.get("Files") or {}
    platforms = (_format_platform(platform) for platform in node.get("Platforms") or ())
    return NodeRecord(
        name=node["Name"],
        endpoint=node["Endpoint"],
        platforms=tuple(platforms),
        driver_opts=dict(node.get("DriverOpts") or {}),
        buildkitd_toml=base64.b64decode(files.get(_CONFIG_FILE, "")).decode(errors="replace"),
        buildkitd_flags=tuple(node.get("Flags") or ()),
    )


def _format_platform(platform: Mapping[str, str]) -> str:
    parts = (platform.get(key, "") for key in ("os", "architecture", "variant"))
    return "/".join(part for part in parts if part)


def parse_inspect_output(text: str) -> BuilderSummary:
    """Parse the output of ``docker buildx inspect``: a block for the builder, then one for each node."""
    head, _, tail = text.partition("\nNodes:")
    values = _parse_fields(head)
    blocks = [_parse_fields(block) for block in re.split(r"\n(?=Name:)", tail) if block.strip()]
    return BuilderSummary(
        name=values.get("Name", ""), driver=values.get("Driver", ""), nodes=tuple(map(_parse_node, blocks))
    )


def _parse_fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines() if re.match(r"[A-Z][\w ]*:", line))
    return {key: value.strip() for key, _, value in pairs}


def _split_options(text: str) -> tuple[str, ...]:
    """Return the options of a driver; a quotation without an end is left as it is."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def _parse_node(values: Mapping[str, str]) -> NodeSummary:
    names = [name.strip(" *") for name in values.get("Platforms", "").split(",")]
    return NodeSummary(
        name=values.get("Name", ""),
        endpoint=values.get("Endpoint", ""),
        status=values.get("Status", ""),
        version=values.get("BuildKit version", ""),
        platforms=tuple(name for name in names if name),
        driver_opt=_split_options(values.get("Driver Options", "")),
        error=values.get("Error", ""),
    )
