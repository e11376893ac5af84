"""What is known of nodes' machines: the platform of each, noted when it was first seen.

BuildKit names its machine's platform first; once platforms are fixed on a node, buildx puts those before
it, and nobody can tell any more.
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
    """A folder of notes, one for each builder."""

    folder: Path

    @classmethod
    def for_store(cls, buildx_store: Path, cache_root: Path) -> NativePlatformStore:
        """The notes about the builders of one of buildx's stores: a name may mean another in each."""
        key = hashlib.sha256(str(buildx_store).encode()).hexdigest()[:8]
        return cls(folder=cache_root / "builders" / key)

    def read(self, builder: str) -> dict[str, str]:
        """The platform of each node's machine, by the node's name; what cannot be read is no note."""
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
        """Keep what is known of a builder's nodes; nodes that were noted before stay."""
        known_platforms = {name: platform for name, platform in platforms.items() if platform}
        text = json.dumps({**self.read(builder), **known_platforms}, indent=2)
        write_atomically(self.folder / f"{builder}.json", text)

    def remove(self, builder: str) -> None:
        """Drop a builder's note."""
        with contextlib.suppress(OSError):
            (self.folder / f"{builder}.json").unlink()
            self.folder.rmdir()  # if it was the last
