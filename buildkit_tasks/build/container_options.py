"""Check the options for the containers of ``RUN`` instructions: network, hosts and limits.

buildx checks them as well, but only when engine and builder are ready. The formats are those of the
reference of ``docker buildx build``, which uses ``github.com/docker/go-units`` for sizes and limits.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_hosts", "check_network", "check_resources", "check_shm_size", "check_ulimits"]

_NETWORKS = ("default", "none", "host")  # all that BuildKit has
_HOST_GATEWAY = "host-gateway"  # the address of the builder's host, which buildx asks the builder for
_SIZE = re.compile(r"[0-9]+(?:\.[0-9]+)? ?(?:[kmgtp]i?b?|b)?\Z", re.IGNORECASE)
_ULIMIT = re.compile(r"(?P<name>[a-z]+)=(?P<soft>-1|[0-9]+)(?::(?P<hard>-1|[0-9]+))?\Z")
_ULIMIT_NAMES = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip
_RESOURCES = (
    "memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems",
)  # fmt: skip


def check_network(network: str) -> None:
    """Raise :class:`UsageError` for a network mode that BuildKit does not have."""
    if network and network not in _NETWORKS:
        nearest = difflib.get_close_matches(network, _NETWORKS, n=1)
        raise UsageError(
            f"--network={network}: BuildKit has only the networks {', '.join(_NETWORKS)}",
            hint=f"--network={nearest[0]}"
            if nearest
            else f"inv setup-builder --driver-opt network={network} --recreate",
        )


def check_hosts(hosts: Iterable[str]) -> None:
    """Raise :class:`UsageError` for an entry that is not ``HOST:ADDRESS`` or ``HOST=ADDRESS``."""
    for text in hosts:
        host, _, address = text.partition("=") if "=" in text else text.partition(":")
        if not host or not (address == _HOST_GATEWAY or _is_address(address)):
            raise UsageError(
                f"--add-host={text} is not a host and its address", hint="--add-host=db.example.org:10.0.0.1"
            )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def check_shm_size(size: str) -> None:
    """Raise :class:`UsageError` for what is not a size, such as ``512m`` or ``2g``."""
    if size and not _SIZE.match(size):
        raise UsageError(f"--shm-size={size} is not a size", hint="--shm-size=512m")


def check_ulimits(ulimits: Iterable[str]) -> None:
    """Raise :class:`UsageError` for what is not ``NAME=SOFT`` or ``NAME=SOFT:HARD``; -1 is no limit."""
    for text in ulimits:
        match = _ULIMIT.match(text)
        if not match or match["name"] not in _ULIMIT_NAMES:
            raise UsageError(
                f"--ulimit={text} is not a limit; the names are {', '.join(_ULIMIT_NAMES)}",
                hint="--ulimit=nofile=1024:2048",
            )
        soft, hard = int(match["soft"]), int(match["hard"] or match["soft"])
        if hard != -1 and (soft == -1 or soft > hard):
            raise UsageError(
                f"--ulimit={text}: the soft limit is above the hard one",
                hint=f"--ulimit={match['name']}={hard}:{soft}",
            )


def check_resources(resources: Iterable[str]) -> None:
    """Raise :class:`UsageError` for what is not ``NAME=VALUE`` with a limit that buildx has."""
    for text in resources:
        name, _, value = text.partition("=")
        if name not in _RESOURCES or not value:
            raise UsageError(
                f"--resource={text} is not a limit; the names are {', '.join(_RESOURCES)}",
                hint="--resource=memory=2g",
            )
