"""Choose the image platform that a host would run, by containerd's rules.

The rules are those of ``Only`` in containerd's ``platforms`` package, which Docker and the Kubernetes
CRI share: a host also accepts older levels of its architecture and the 32-bit architecture that its
CPU can run. Emulators are not considered.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.platforms.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["accepted_platforms", "find_best_match", "is_compatible"]

_VARIANT_PATTERN = re.compile(r"v([0-9]{1,2})(?:\.([0-9]))?\Z", re.ASCII)
_V8, _V9, _OLDEST_ARM_VERSION = 8, 9, 5
_V9_MINOR_OFFSET = 5  # Armv9.0-A is based on Armv8.5-A: v9.N includes v8.(N+5)


def is_compatible(host: Platform, platform: Platform) -> bool:
    """Return True if containerd on ``host`` accepts an image for ``platform``."""
    return platform in accepted_platforms(host)


def find_best_match(host: Platform, available: Iterable[Platform]) -> Platform | None:
    """Return the platform of ``available`` that containerd on ``host`` prefers, or None."""
    preferences = accepted_platforms(host)
    return min((item for item in available if item in preferences), key=preferences.index, default=None)


def accepted_platforms(host: Platform) -> tuple[Platform, ...]:
    """Return the platforms whose images ``host`` accepts, the preferred ones first."""
    host = Platform.normalize(host.os, host.architecture, host.variant)
    fallbacks = _FALLBACKS.get(host.architecture, lambda _: [])(host.variant)
    return tuple(dict.fromkeys([host, *(Platform.normalize(host.os, *fallback) for fallback in fallbacks)]))


def _amd64_fallbacks(variant: str) -> list[tuple[str, str]]:
    major, _ = _parse_version(variant)
    return [*(("amd64", f"v{level}") for level in range(major - 1, 0, -1)), ("386", "")]


def _arm_fallbacks(variant: str) -> list[tuple[str, str]]:
    major, _ = _parse_version(variant)
    return [
        ("arm", variant),
        *(("arm", f"v{level}") for level in range(major - 1, _OLDEST_ARM_VERSION - 1, -1)),
    ]


def _arm64_fallbacks(variant: str) -> list[tuple[str, str]]:
    major, minor = _parse_version(variant or "v8")
    fallbacks = []
    if major == _V9:
        fallbacks = [("arm64", _format_version(_V9, level)) for level in range(minor, -1, -1)]
        major, minor = _V8, minor + _V9_MINOR_OFFSET
    if major == _V8:
        fallbacks += [("arm64", _format_version(_V8, level)) for level in range(minor, -1, -1)]
    return fallbacks + _arm_fallbacks("v8" if not variant or "." in variant else variant)


def _parse_version(variant: str) -> tuple[int, int]:
    """Return (8, 2) for ``v8.2``, and zeros for anything else."""
    match = _VARIANT_PATTERN.match(variant)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


def _format_version(major: int, minor: int) -> str:
    return f"v{major}.{minor}" if minor else f"v{major}"


_FALLBACKS = {"amd64": _amd64_fallbacks, "arm": _arm_fallbacks, "arm64": _arm64_fallbacks}
