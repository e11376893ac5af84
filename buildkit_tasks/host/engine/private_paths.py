"""The files and directories of a private engine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BRIDGE_PREFIX", "PrivateEnginePaths"]

BRIDGE_PREFIX = "bkt-"


@dataclass(frozen=True, slots=True)
class PrivateEnginePaths:
    """The files and directories of one private engine, by its name."""

    cache: Path
    name: str = "engine"

    @property
    def root(self) -> Path:
        """Configuration, state and log."""
        return self.cache / self.name

    @property
    def prefix(self) -> Path:
        """The installed packages."""
        return self.cache / "debian" / "engine"

    @property
    def runtime_dir(self) -> Path:
        """Sockets and mounts; a short path, because those of sockets are limited to 107 bytes (unix(7))."""
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]
        return Path("/run/buildkit-tasks") / digest

    @property
    def bridge(self) -> str:
        """The network bridge of its containers (the name of a device has at most 15 characters)."""
        return f"{BRIDGE_PREFIX}{self.runtime_dir.name}"

    @property
    def socket(self) -> Path:
        """The daemon's only socket."""
        return self.runtime_dir / "docker.sock"

    @property
    def endpoint(self) -> str:
        """The socket's URL for DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def containerd_dir(self) -> Path:
        """Configuration, socket and state of the engine's containerd."""
        return self.runtime_dir / "exec/containerd"

    @property
    def containerd_socket(self) -> Path:
        """The socket of the engine's containerd."""
        return self.containerd_dir / "containerd.sock"

    @property
    def data_root(self) -> Path:
        """Images, containers and build cache."""
        return self.root / "data"

    @property
    def temporary_dir(self) -> Path:
        """Temporary files of the daemon and of BuildKit."""
        return self.root / "tmp"

    @property
    def process_file(self) -> Path:
        """The daemon's pid and start time."""
        return self.root / "process"

    @property
    def log_file(self) -> Path:
        """The daemon's output."""
        return self.root / "dockerd.log"
