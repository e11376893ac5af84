"""Platforms, and the one table of architectures."""

from buildkit_tasks.platforms.architectures import (
    DEVICES,
    MACHINES,
    Level,
    Machine,
    foreign_machine,
    machine_of_elf,
)
from buildkit_tasks.platforms.matching import accepted, best_match, satisfies
from buildkit_tasks.platforms.platform import (
    Platform,
    known_platforms,
    native_platform,
    parse_platforms,
    platform_of_uname,
)

__all__ = [
    "DEVICES",
    "MACHINES",
    "Level",
    "Machine",
    "Platform",
    "accepted",
    "best_match",
    "foreign_machine",
    "known_platforms",
    "machine_of_elf",
    "native_platform",
    "parse_platforms",
    "platform_of_uname",
    "satisfies",
]
