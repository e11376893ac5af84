"""Ports of this machine: one that is free, and whether somebody listens at one."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["free_port", "listens"]


def free_port(address: str = "127.0.0.1") -> int:
    """A port at which nobody listened just now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def listens(host: str, port: int) -> bool:
    """Whether a connection is taken there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
