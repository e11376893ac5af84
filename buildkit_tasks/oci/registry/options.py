"""How a registry is approached: time limits, certificates, credentials, and what a test may replace."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.oci.registry.url_policy import resolve_host
from buildkit_tasks.system.command import SubprocessRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.system.command import CommandRunner

__all__ = ["RegistryOptions"]


def _default_certificate_dirs() -> tuple[Path, ...]:
    """Docker's folders: for the machine, and for a rootless engine's user."""
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (Path("/etc/docker/certs.d"), config_home / "docker/certs.d")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """Times are seconds.

    ``connect`` bounds a connection, ``idle`` a silence, ``patience`` the sum of all waits for a
    registry that asks for some (429, 503). ``certificates`` are folders with a folder for each
    ``HOST[:PORT]``, as Docker has them. ``environ`` says where credentials, proxies and
    certificates are; credential helpers are run by ``run``. Without a ``sleep`` of one's own, waits end
    when the work is given up.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    max_wait: float = 60.0
    certificate_dirs: tuple[Path, ...] = field(default_factory=_default_certificate_dirs)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    commands: CommandRunner = field(default_factory=lambda: SubprocessRunner(dry_run_output=sys.stderr))
    resolve: Callable[[str], Sequence[str]] = resolve_host
    sleep: Callable[[float], object] | None = None
