"""Platforms and the table of architectures."""

from buildkit_tasks.platforms.architectures import (
    DEVICE_MACHINES,
    MACHINES,
    IsaLevel,
    Machine,
    foreign_machine_name,
    machine_from_elf,
)
from buildkit_tasks.platforms.matching import accepted_platforms, find_best_match, is_compatible
from buildkit_tasks.platforms.platform import (
    Platform,
    known_platforms,
    native_platform,
    parse_platforms,
    platform_of_uname,
)

__all__ = [
    "DEVICE_MACHINES",
    "MACHINES",
    "IsaLevel",
    "Machine",
    "Platform",
    "accepted_platforms",
    "find_best_match",
    "foreign_machine_name",
    "is_compatible",
    "known_platforms",
    "machine_from_elf",
    "native_platform",
    "parse_platforms",
    "platform_of_uname",
]
