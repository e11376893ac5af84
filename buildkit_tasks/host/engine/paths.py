"""Where a private engine keeps its things."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PrivatePaths"]


@dataclass(frozen=True, slots=True)
class PrivatePaths:
    """Where one private engine keeps its things; ``name`` tells several engines apart."""

    cache: Path
    name: str = "engine"

    @property
    def home(self) -> Path:
        """Configuration, state and log."""
        return self.cache / self.name

    @property
    def prefix(self) -> Path:
        """The unpacked packages."""
        return self.cache / "debian" / "engine"

    @property
    def runtime(self) -> Path:
        """Sockets and mounts: short, since a socket's path may have 107 bytes, and gone at reboot."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:8]
        return Path("/run/buildkit-tasks") / digest

    @property
    def bridge(self) -> str:
        """The network device of its containers (15 characters at most)."""
        return f"bkt-{self.runtime.name}"

    @property
    def socket(self) -> Path:
        """The daemon's only listener."""
        return self.runtime / "docker.sock"

    @property
    def endpoint(self) -> str:
        """The socket as docker's clients write it."""
        return f"unix://{self.socket}"

    @property
    def data(self) -> Path:
        """Images, containers and build cache."""
        return self.home / "data"

    @property
    def state(self) -> Path:
        """Which process is the daemon, and when it started."""
        return self.home / "process"

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.home / "dockerd.log"
