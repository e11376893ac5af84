"""The platform value, ``os/architecture[/variant]``, and its parser.

The fields are those of the OCI image index specification (section "Image Index Property
Descriptions", ``platform``). Names are normalised as in containerd's ``platforms`` package:
``aarch64`` is ``arm64``, ``arm`` alone is ``arm/v7``, ``arm64/v8`` is ``arm64``.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms.architectures import MACHINES, IsaLevel, Machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Platform", "known_platforms", "native_platform", "parse_platforms", "platform_of_uname"]

_MACHINE_BY_ARCHITECTURE = {machine.architecture: machine for machine in MACHINES}

# Other names of an architecture, or of one of its variants.
_ALIASES = {
    **{alias: (machine.architecture, "") for machine in MACHINES for alias in machine.aliases},
    **{
        alias: (machine.architecture, level.name)
        for machine in MACHINES
        for level in machine.variants
        for alias in level.aliases
    },
}

# Variants that some tools write without the letter v; containerd accepts these.
_NUMERIC_VARIANTS = {"arm": ("5", "6", "7", "8"), "arm64": ("8",)}

_PLATFORM_PATTERN = re.compile(r"[a-z0-9_-]+(?:/[a-z0-9_.-]+){0,2}\Z", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An operating system, an architecture and a variant; ``str()`` gives ``linux/arm/v7``."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def slug(self) -> str:
        """The name for test ids and tags, without the operating system: ``arm-v7``."""
        return "-".join(part for part in (self.architecture, self.variant) if part)

    @property
    def goarch(self) -> str:
        """Go's name of the architecture (``go env GOARCH``), which OCI uses too."""
        return self.architecture

    @property
    def is_known(self) -> bool:
        """Whether this is Linux on an architecture of the table, so that its programs can be run."""
        return self.os == "linux" and self.architecture in _MACHINE_BY_ARCHITECTURE

    @property
    def machine(self) -> Machine:
        """This platform's entry in the architecture table."""
        return _MACHINE_BY_ARCHITECTURE[self.architecture]

    @property
    def debian_architecture(self) -> str:
        """Debian's name for the architecture whose packages run on this platform."""
        return self._variant_level().debian_architecture or self.machine.debian_architecture

    @property
    def baseline_cpu(self) -> str:
        """The oldest QEMU CPU model that implements this platform's baseline."""
        return self._variant_level().baseline_cpu or self.machine.baseline_cpu

    @property
    def baseline(self) -> IsaLevel | None:
        """The instruction set level that every CPU of this platform has.

        None for an architecture that has no levels or is not in the table.
        """
        machine = _MACHINE_BY_ARCHITECTURE.get(self.architecture)
        return machine.baseline_of(self.variant) if machine else None

    @property
    def baseline_build_options(self) -> tuple[str, ...]:
        """The settings of Go and of C compilers that limit a program to the baseline, and their languages."""
        level = self.baseline
        if level is None:
            return ()
        setting = f"{self.machine.go_variable}={level.go_value} (Go)" if level.go_value else ""
        option = f"{level.compiler_option} (C)" if level.compiler_option else ""
        return tuple(filter(None, (setting if self.machine.go_variable else "", option)))

    def _variant_level(self) -> IsaLevel:
        levels = (level for level in self.machine.variants if level.name == self.variant)
        return next(levels, IsaLevel(name="", title=""))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse and normalise ``linux/arm/v7``, ``arm64`` or another usual spelling.

        Raise :class:`UsageError`, with the closest known platform, for one that is not in the table:
        buildx itself would build ``linux/zz`` and exit 0.
        """
        name = text.strip().lower()
        if not _PLATFORM_PATTERN.match(name):
            raise UsageError(f"{text!r} is not a valid platform", hint="write it as linux/arm64")
        parts = name.split("/")
        if parts[0] not in ("linux", "windows", "darwin", "freebsd", "wasip1"):
            parts.insert(0, "linux")
        if len(parts) > 3:  # noqa: PLR2004 - os, architecture, variant
            raise _unknown_platform_error(text)
        return _parse_known(text, *parts)

    @classmethod
    def normalize(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        """Return the platform with its spelling normalised, whether or not it is known."""
        architecture, alias_variant = _ALIASES.get(architecture, (architecture, ""))
        variant = variant or alias_variant
        if architecture in _NUMERIC_VARIANTS and variant in _NUMERIC_VARIANTS[architecture]:
            variant = f"v{variant}"
        machine = _MACHINE_BY_ARCHITECTURE.get(architecture)
        if machine is not None:
            variant = variant or machine.default_variant
            variant = "" if variant == machine.implied_variant else variant
        return cls(os_name, architecture, variant)


def _parse_known(text: str, os_name: str, architecture: str = "", variant: str = "") -> Platform:
    platform = Platform.normalize(os_name, architecture, variant)
    if platform not in known_platforms():
        raise _unknown_platform_error(text)
    return platform


def known_platforms() -> list[Platform]:
    """Return every platform of the table, an architecture before its variants."""
    return list(_iter_platforms())


def _iter_platforms() -> Iterator[Platform]:
    for machine in MACHINES:
        if not machine.default_variant:
            yield Platform("linux", machine.architecture)
        for level in machine.variants:
            if level.name != machine.implied_variant:
                yield Platform("linux", machine.architecture, level.name)


def _unknown_platform_error(text: str) -> UsageError:
    """Name the known platform whose name after ``linux/`` is closest to ``text``."""
    platforms = {str(platform).removeprefix("linux/"): platform for platform in known_platforms()}
    name = text.strip().lower().removeprefix("linux/")
    find_closest = functools.partial(difflib.get_close_matches, name, n=1)
    matches = find_closest(list(platforms)) or find_closest(list(_ALIASES))
    if not matches:
        hint = f"use one of {', '.join(map(str, platforms.values()))}"
        return UsageError(f"unknown platform {text!r}", hint=hint)
    match = platforms.get(matches[0]) or Platform.parse(matches[0])
    return UsageError(f"unknown platform {text!r}, did you mean {match}?")


def parse_platforms(values: Iterable[str]) -> tuple[Platform, ...]:
    """Parse platforms given one by one or separated by commas; keep their order, drop repetitions."""
    texts = (part for value in values for part in value.split(",") if part.strip())
    return tuple(dict.fromkeys(Platform.parse(text) for text in texts))


def native_platform() -> Platform:
    """Return the platform of the running kernel, from ``uname -m``."""
    return platform_of_uname(os.uname().machine)


def platform_of_uname(name: str) -> Platform:
    """Return the platform of a kernel whose ``uname -m`` is ``name``."""
    architectures = (machine.architecture for machine in MACHINES if name in machine.uname_machines)
    architecture, variant = _ALIASES.get(name) or (next(architectures, name), "")
    return Platform.normalize("linux", architecture, variant)
