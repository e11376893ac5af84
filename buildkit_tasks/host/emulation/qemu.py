"""Find QEMU's user-mode programs: the host's, or Debian's in the cache directory."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder, create_cache_folder
from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError, MalformedImage
from buildkit_tasks.system.command import CommandOptions, CommandRunner

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine
    from buildkit_tasks.system.debian import PackageSet
    from buildkit_tasks.system.notify import Notify

__all__ = ["QemuFinder", "qemu_packages", "qemu_prefix", "read_qemu_version"]

_HEADERS_SIZE = 1 << 16  # of the start of a program, where linkers put the program headers
_VERSION_SECONDS = 10.0
_VERSION_PATTERN = re.compile(r"version (\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuFinder:
    """Finds QEMU's user-mode programs as the settings allow."""

    settings: Settings
    commands: CommandRunner
    notify: Notify

    def find(self, machine: Machine) -> Path | None:
        """Return a static QEMU for this architecture: the host's, else Debian's, or None.

        Debian's is downloaded unless ``emulators = "none"``. With ``emulators = "host"``, raise
        :class:`EmulatorError` if that fails.
        """
        return _find_host_qemu(machine) or self._find_debian_qemu(machine)

    def _find_debian_qemu(self, machine: Machine) -> Path | None:
        prefix = qemu_prefix(self.settings)
        program = prefix / "usr/bin" / f"qemu-{machine.qemu_suffix}"
        if os.access(program, os.X_OK):
            return program
        if self.settings.emulators == "none":
            return None
        from buildkit_tasks.system.debian import install_packages

        if not self.commands.dry_run:
            create_cache_folder(self.settings)
        try:
            install_packages(prefix, qemu_packages(), self.commands, self.notify)
        except EngineError as error:
            if self.settings.emulators == "host":
                raise EmulatorError(error.message, hint=error.hint) from error
            self.notify(error.message)
            return None
        return program if program.exists() or self.commands.dry_run else None


def qemu_packages() -> tuple[PackageSet, ...]:
    """Return the packages with QEMU's static user-mode programs."""
    from buildkit_tasks.system.debian import PackageSet

    return (PackageSet(names=("qemu-user",)),)


def qemu_prefix(settings: Settings) -> Path:
    """Return the directory of Debian's QEMU in the cache."""
    return cache_folder(settings) / "debian" / "qemu"


def read_qemu_version(program: str, commands: CommandRunner) -> str:
    """Return the version that a QEMU binary prints, such as 11.1.2, or an empty string."""
    try:
        result = commands.run([program, "--version"], CommandOptions(timeout=_VERSION_SECONDS))
    except (BuildkitTasksError, OSError):
        return ""
    match = _VERSION_PATTERN.search(result.stdout)
    return match[1] if match else ""


def _find_host_qemu(machine: Machine) -> Path | None:
    """Return the host's QEMU if it is static; a dynamic one cannot find its libraries in a container."""
    for name in (f"qemu-{machine.qemu_suffix}-static", f"qemu-{machine.qemu_suffix}"):
        path = shutil.which(name)
        if path is not None and _is_static(Path(path)):
            return Path(path)
    return None


def _is_static(program: Path) -> bool:
    """Return True for an ELF file without a program interpreter."""
    from buildkit_tasks.platforms.elf.reader import read_elf_header
    from buildkit_tasks.platforms.elf.segments import PT_INTERP, ElfFile
    from buildkit_tasks.platforms.elf.view import WholeFile

    try:
        with program.open("rb") as stream:
            view = WholeFile(stream.read(_HEADERS_SIZE))
        elf = ElfFile(view, read_elf_header(view.read_at(0, _HEADERS_SIZE)))
    except (OSError, MalformedImage):  # a script, for example
        return False
    return elf.find_segment(PT_INTERP) is None and not elf.problems
