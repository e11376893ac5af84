"""Judge what a binary needs against what its platform's name promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.binaries.elf import Binary
    from buildkit_tasks.platforms import Platform

__all__ = ["STREAM_MAGICS", "STREAM_WINDOW", "Evidence", "float_abi", "isa_problems"]

STREAM_MAGICS: tuple[bytes, ...] = (b"\xff Go buildinf:", b"aeabi\0")
"""What to look for in a file that is too large to keep: Go build info and Arm's build attributes.

A kept window should start 16 bytes before a hit and reach :data:`STREAM_WINDOW` bytes behind it.
"""
STREAM_WINDOW = 1 << 17


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that a binary says about itself: where it is said, what about, and the words."""

    source: str
    name: str
    value: str


def isa_problems(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """Why the binary needs more than the platform promises, in words; nothing if it does not."""
    del platform, binary
    return ()


def float_abi(binary: Binary) -> str:
    """How an ARM binary passes floating point numbers: ``hard``, ``soft``, or nothing if it is not said."""
    said = [item.value for item in binary.evidence if item.name == "float ABI"]
    return next((value for value in said if value in ("hard", "soft")), "")
