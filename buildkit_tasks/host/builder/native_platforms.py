"""Cache the platform of each node's machine.

BuildKit lists the platform of its machine first. Once platforms are fixed on a node, buildx lists those
first, so it is saved before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.system.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["NativePlatformStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePlatformStore:
    """A directory with one JSON file for each builder, which maps node names to platforms."""

    folder: Path

    @classmethod
    def for_store(cls, buildx_store: Path, cache_root: Path) -> NativePlatformStore:
        """Return the cache for one of buildx's stores: each may have a builder of the same name."""
        key = hashlib.sha256(str(buildx_store).encode()).hexdigest()[:8]
        return cls(folder=cache_root / "builders" / key)

    def read(self, builder: str) -> dict[str, str]:
        """Return the platform of each node's machine by node name; ignore a file that cannot be read."""
        try:
            document = json.loads((self.folder / f"{builder}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return (
            {str(name): str(platform) for name, platform in document.items()}
            if isinstance(document, dict)
            else {}
        )

    def save(self, builder: str, platforms: Mapping[str, str]) -> None:
        """Save the platforms that are known; keep those of other nodes."""
        known_platforms = {name: platform for name, platform in platforms.items() if platform}
        text = json.dumps({**self.read(builder), **known_platforms}, indent=2)
        write_atomically(self.folder / f"{builder}.json", text)

    def remove(self, builder: str) -> None:
        """Remove a builder's file, and the directory if it is empty."""
        with contextlib.suppress(OSError):
            (self.folder / f"{builder}.json").unlink()
            self.folder.rmdir()
