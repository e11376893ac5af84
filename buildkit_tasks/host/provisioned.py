"""The packages of Debian that were fetched into the cache, and when they are fetched again.

They are not updated with the machine, so security updates have to come from here: ``setup-builder`` fetches
packages again that are :data:`MAX_AGE_DAYS` old. Other tasks use what is there; ``doctor`` tells its age.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError, LimitExceeded
from buildkit_tasks.hints import translate_commands
from buildkit_tasks.host.emulation.qemu import qemu_packages, qemu_prefix
from buildkit_tasks.host.engine.daemon import TOOLS_PACKAGES, tools_prefix
from buildkit_tasks.host.engine.private import ENGINE_PACKAGES, engine_prefix, is_private_engine_running
from buildkit_tasks.system.debian import PackageSet, package_age, renew_packages

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["MAX_AGE_DAYS", "ProvisionedPackages", "find_old_packages", "renew_old_packages"]

MAX_AGE_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionedPackages:
    """Packages below one directory of the cache; ``days`` since they were fetched, whole ones."""

    prefix: Path
    package_sets: tuple[PackageSet, ...]
    days: int

    @property
    def names(self) -> str:
        """The packages' names, for messages."""
        return ", ".join(name for each in self.package_sets for name in each.names)


def find_old_packages(settings: Settings) -> list[ProvisionedPackages]:
    """Return the packages that are due to be fetched again."""
    fetched = {
        tools_prefix(settings): TOOLS_PACKAGES,
        qemu_prefix(settings): qemu_packages(),
        engine_prefix(settings): ENGINE_PACKAGES,
    }
    packages = [
        ProvisionedPackages(prefix=prefix, package_sets=sets, days=int(package_age(prefix)))
        for prefix, sets in fetched.items()
    ]
    return [each for each in packages if each.days >= MAX_AGE_DAYS]


def renew_old_packages(settings: Settings, commands: CommandRunner, notify: Notify) -> list[Path]:
    """Fetch packages that are due again; return the directories that were replaced.

    What cannot be fetched stays, and is reported. So do the packages of an engine that runs from them.
    """
    return [each.prefix for each in find_old_packages(settings) if _renew(each, settings, commands, notify)]


def _renew(
    packages: ProvisionedPackages, settings: Settings, commands: CommandRunner, notify: Notify
) -> bool:
    age = f"{packages.names} in the cache are {packages.days} days old"
    if packages.prefix == engine_prefix(settings) and is_private_engine_running(settings):
        notify(translate_commands(f"{age}: `inv stop-engine --keep-state`, then `inv setup-builder`"))
        return False
    notify(f"{age}: fetching them again")
    try:
        renew_packages(packages.prefix, packages.package_sets, commands, notify)
    except (EngineError, LimitExceeded) as error:
        notify(f"they stay as they are: {error.message}")
        return False
    return True
