"""Which images a machine would take, and which of several first: containerd's rules.

They are those of ``Only`` in containerd's ``platforms`` package, which Docker and Kubernetes' CRI
share: an older level of the same architecture, and the 32-bit architecture that a 64-bit machine may
run as well. No emulator is counted on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.platforms.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["accepted", "best_match", "satisfies"]

_NUMBER = re.compile(r"v([0-9]{1,2})(?:\.([0-9]))?\Z", re.ASCII)
_V8, _V9, _OLDEST_ARM = 8, 9, 5
_BRANCHED = 5  # Armv9.0-A came from Armv8.5-A: v9.N has all of v8.(N+5)


def satisfies(host: Platform, wanted: Platform) -> bool:
    """Whether containerd on a machine of platform ``host`` takes an image for ``wanted``."""
    return wanted in accepted(host)


def best_match(host: Platform, available: Iterable[Platform]) -> Platform | None:
    """The one that containerd on that machine takes of several platforms; None if it takes none."""
    order = accepted(host)
    return min((each for each in available if each in order), key=order.index, default=None)


def accepted(host: Platform) -> tuple[Platform, ...]:
    """All platforms whose images such a machine takes, the ones it likes best first."""
    host = Platform.normalised(host.os, host.architecture, host.variant)
    others = _OTHERS.get(host.architecture, lambda _: [])(host.variant)
    return tuple(dict.fromkeys([host, *(Platform.normalised(host.os, *name) for name in others)]))


def _amd64(variant: str) -> list[tuple[str, str]]:
    major, _ = _split(variant)
    return [*(("amd64", f"v{level}") for level in range(major - 1, 0, -1)), ("386", "")]


def _arm(variant: str) -> list[tuple[str, str]]:
    major, _ = _split(variant)
    return [("arm", variant), *(("arm", f"v{level}") for level in range(major - 1, _OLDEST_ARM - 1, -1))]


def _arm64(variant: str) -> list[tuple[str, str]]:
    major, minor = _split(variant or "v8")
    names = []
    if major == _V9:
        names = [("arm64", _dotted(_V9, level)) for level in range(minor, -1, -1)]
        major, minor = _V8, minor + _BRANCHED
    if major == _V8:
        names += [("arm64", _dotted(_V8, level)) for level in range(minor, -1, -1)]
    return names + _arm("v8" if not variant or "." in variant else variant)


def _split(variant: str) -> tuple[int, int]:
    """The numbers of ``v8.2``; zeros for anything else."""
    match = _NUMBER.match(variant)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


def _dotted(major: int, minor: int) -> str:
    return f"v{major}.{minor}" if minor else f"v{major}"


_OTHERS = {"amd64": _amd64, "arm": _arm, "arm64": _arm64}
