"""QEMU's user-mode programs: the host's, or Debian's in the private prefix."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder
from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError, MalformedImage
from buildkit_tasks.system.command import Call, Runner

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine
    from buildkit_tasks.system.notify import Tell

__all__ = ["Qemu", "qemu_version"]

_SECONDS = 10.0
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """What is needed to find QEMU's programs under the settings."""

    settings: Settings
    run: Runner
    tell: Tell

    def find(self, machine: Machine) -> Path | None:
        """A static QEMU for this architecture: the host's, else Debian's, fetched if need be.

        None where there is neither. With ``emulators = "host"`` raises :class:`EmulatorError` for what
        is in the way of fetching it, and with ``none`` nothing is fetched.
        """
        return _of_host(machine) or _of_debian(machine, self.settings, self.run, self.tell)


def qemu_version(program: str, run: Runner) -> str:
    """The version that a QEMU binary prints, such as 11.1.2; empty where it does not say."""
    try:
        done = run.run([program, "--version"], Call(timeout=_SECONDS))
    except BuildkitTasksError:
        return ""
    found = _VERSION.search(done.stdout)
    return found[1] if found else ""


def _of_host(machine: Machine) -> Path | None:
    """The host's QEMU if it is static: a dynamic one cannot find its libraries in a container."""
    for name in (f"qemu-{machine.qemu}-static", f"qemu-{machine.qemu}"):
        found = shutil.which(name)
        if found is not None and _is_static(Path(found)):
            return Path(found)
    return None


def _is_static(program: Path) -> bool:
    from buildkit_tasks.platforms.elf.reader import interpreter

    try:
        with program.open("rb") as stream:
            return interpreter(stream) is None
    except (OSError, MalformedImage):  # a script, for one
        return False


def _of_debian(machine: Machine, settings: Settings, run: Runner, tell: Tell) -> Path | None:
    prefix = cache_folder(settings) / "debian" / "qemu"
    program = prefix / "usr/bin" / f"qemu-{machine.qemu}"
    if program.exists():
        return program
    if settings.emulators == "none":
        return None
    from buildkit_tasks.system.debian import Packages, provision

    try:
        provision(prefix, [Packages(names=("qemu-user",))], run, tell)
    except EngineError as error:
        if settings.emulators == "host":
            raise EmulatorError(error.message, hint=error.hint) from error
        tell(error.message)
        return None
    return program if program.exists() or run.dry_run else None
