"""Where buildx keeps its records of builders, ours and the user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.host.builder.found import read_record
from buildkit_tasks.host.builder.spec import ELSEWHERE
from buildkit_tasks.host.engine.daemon import docker_config_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.config.settings import Settings

__all__ = ["is_elsewhere", "record_of"]


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
