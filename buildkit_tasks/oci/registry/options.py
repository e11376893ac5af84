"""Options for access to registries: timeouts, certificates, credentials, and hooks for tests."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.oci.registry.url_policy import resolve_host
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.system.command import CommandRunner

__all__ = ["RegistryOptions"]


def _default_certificate_dirs() -> tuple[Path, ...]:
    """Return Docker's directories: of the machine, and of the user of a rootless engine."""
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or expand_home("~/.config"))
    return (Path("/etc/docker/certs.d"), config_home / "docker/certs.d")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How to access registries. Times are in seconds.

    ``connect_timeout`` limits connecting, ``read_timeout`` a pause in a response or in sending, and
    ``max_wait`` the sum of all waits between retries. ``certificate_dirs`` contain a directory per
    ``HOST[:PORT]``, as in Docker. ``environ`` locates credentials, proxies and certificates; ``commands``
    runs credential helpers. The default ``sleep`` ends when the requests are aborted.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    max_wait: float = 60.0
    certificate_dirs: tuple[Path, ...] = field(default_factory=_default_certificate_dirs)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    commands: CommandRunner = field(default_factory=lambda: SubprocessRunner(dry_run_output=sys.stderr))
    resolve: Callable[[str], Sequence[str]] = resolve_host
    sleep: Callable[[float], object] | None = None
