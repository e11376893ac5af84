"""How a registry is approached: time limits, certificates, credentials, and what a test may replace."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.oci.registry.url_policy import addresses_of
from buildkit_tasks.system.command import Commands

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.system.command import Runner

__all__ = ["Access"]


def _certificate_folders() -> tuple[Path, ...]:
    """Docker's folders: for the machine, and for a rootless engine's user."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (Path("/etc/docker/certs.d"), home / "docker/certs.d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Times are seconds.

    ``connect`` bounds a connection, ``idle`` a silence, ``patience`` the sum of all waits for a
    registry that asks for some (429, 503). ``certificates`` are folders with a folder for each
    ``HOST[:PORT]``, as Docker has them. ``environ`` says where credentials, proxies and
    certificates are; credential helpers are run by ``run``. Without a ``sleep`` of one's own, waits end
    when the work is given up.
    """

    connect: float = 10.0
    idle: float = 60.0
    patience: float = 60.0
    certificates: tuple[Path, ...] = field(default_factory=_certificate_folders)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    run: Runner = field(default_factory=lambda: Commands(echo=sys.stderr))
    look_up: Callable[[str], Sequence[str]] = addresses_of
    sleep: Callable[[float], object] | None = None
