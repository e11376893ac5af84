"""What this kernel lets this user do, and in words why not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EmulatorError

if TYPE_CHECKING:
    from buildkit_tasks.run.sandbox.supervisor import Refused

__all__ = ["SandboxClosed", "why_closed"]

_SINCE = (6, 7)  # binfmt_misc for each user namespace
_SETTINGS = Path("/proc/sys")
_APPARMOR = (
    "AppArmor closes user namespaces to programs without a profile:"
    " sysctl kernel.apparmor_restrict_unprivileged_userns is 1"
)


class SandboxClosed(EmulatorError):
    """The kernel does not let this user have a sandbox."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="inv run-emulated --runner=docker")


def why_closed(refused: Refused, settings: Path = _SETTINGS, release: str = "") -> str:
    """The likeliest cause of a refusal: the kernel's age, a closed setting, or a container around us."""
    release = release or os.uname().release
    causes = [*_closed_settings(settings), *_surroundings()]
    if _version(release) < _SINCE:
        causes.insert(0, f"Linux {release} has one handler table for all; 6.7 has one per user namespace")
    return f"no sandbox can be had: {refused}" + "".join(f" ({cause})" for cause in causes[:1])


def _closed_settings(settings: Path) -> list[str]:
    closed = {
        "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces is 0"),
        "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone is 0"),
        "kernel/apparmor_restrict_unprivileged_userns": ("1", _APPARMOR),
    }
    ordinary = os.geteuid() != 0
    return [
        words
        for name, (value, words) in closed.items()
        if _read(settings / name) == value and (ordinary or name.startswith("user/"))
    ]


def _surroundings() -> list[str]:
    """A container's own confines: a filter of system calls (proc_pid_status(5)), a part of /proc hidden."""
    status = _read(Path("/proc/self/status"))
    filtered = re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    return ["a seccomp filter is at work, as in containers"] if filtered else []


def _version(release: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
