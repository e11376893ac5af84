"""What the private engine needs of the host's network: a working iptables, and docker0 gone after."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from typing import TYPE_CHECKING

from buildkit_tasks.commands import Call, Runner
from buildkit_tasks.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["iptables_program", "remove_bridge"]

# linux/sockios.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRDELBR = 0x8913, 0x8914, 0x89A1
_IFF_UP = 1


def iptables_program(folder: Path, run: Runner, env: Mapping[str, str]) -> Path:
    """Debian's iptables for the back end that this kernel has: nf_tables, else the legacy one."""
    words = ""
    for name in ("xtables-nft-multi", "xtables-legacy-multi"):
        program = folder / name
        done = run.run([str(program), "iptables", "--wait", "-t", "nat", "-S"], Call(env=env, timeout=30))
        if done.ok:
            return program
        words = done.reason
    raise EngineError(
        f"this kernel lets nobody make NAT rules, which containers need for their network: {words}",
        hint="run on a host or in a privileged container",
    )


def remove_bridge(name: str) -> None:
    """Take down and delete a bridge device (the ioctls of ``brctl``); one that is gone is fine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle, contextlib.suppress(OSError):
        request = struct.pack("16sH14x", name.encode(), 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(handle, _SIOCGIFFLAGS, request))[1]
        request = struct.pack("16sH14x", name.encode(), flags & ~_IFF_UP)
        fcntl.ioctl(handle, _SIOCSIFFLAGS, request)
        fcntl.ioctl(handle, _SIOCBRDELBR, name.encode() + b"\0")
