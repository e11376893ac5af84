"""QEMU's user-mode programs: the host's, or Debian's in the private prefix."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder
from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError, MalformedImage
from buildkit_tasks.system.command import CommandOptions, CommandRunner

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine
    from buildkit_tasks.system.notify import Notify

__all__ = ["QemuFinder", "read_qemu_version"]

_HEADERS_SIZE = 1 << 16  # of the start of a program, where linkers put the program headers
_VERSION_SECONDS = 10.0
_VERSION_PATTERN = re.compile(r"version (\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuFinder:
    """What is needed to find QEMU's programs under the settings."""

    settings: Settings
    commands: CommandRunner
    notify: Notify

    def find(self, machine: Machine) -> Path | None:
        """A static QEMU for this architecture: the host's, else Debian's, fetched if need be.

        None where there is neither. With ``emulators = "host"`` raises :class:`EmulatorError` for what
        is in the way of fetching it, and with ``none`` nothing is fetched.
        """
        return _find_host_qemu(machine) or _find_debian_qemu(
            machine, self.settings, self.commands, self.notify
        )


def read_qemu_version(program: str, commands: CommandRunner) -> str:
    """The version that a QEMU binary prints, such as 11.1.2; empty where it does not say."""
    try:
        result = commands.run([program, "--version"], CommandOptions(timeout=_VERSION_SECONDS))
    except BuildkitTasksError:
        return ""
    match = _VERSION_PATTERN.search(result.stdout)
    return match[1] if match else ""


def _find_host_qemu(machine: Machine) -> Path | None:
    """The host's QEMU if it is static: a dynamic one cannot find its libraries in a container."""
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


def _find_debian_qemu(
    machine: Machine, settings: Settings, commands: CommandRunner, notify: Notify
) -> Path | None:
    prefix = cache_folder(settings) / "debian" / "qemu"
    program = prefix / "usr/bin" / f"qemu-{machine.qemu_suffix}"
    if program.exists():
        return program
    if settings.emulators == "none":
        return None
    from buildkit_tasks.system.debian import PackageSet, install_packages

    try:
        install_packages(prefix, [PackageSet(names=("qemu-user",))], commands, notify)
    except EngineError as error:
        if settings.emulators == "host":
            raise EmulatorError(error.message, hint=error.hint) from error
        notify(error.message)
        return None
    return program if program.exists() or commands.dry_run else None
