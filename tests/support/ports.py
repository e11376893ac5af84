"""Find free ports, and test whether a port accepts connections."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["free_port", "listens"]


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def listens(host: str, port: int) -> bool:
    """Return True if the port accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
