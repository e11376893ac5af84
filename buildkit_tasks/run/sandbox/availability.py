"""Explain why the kernel does not allow this user a sandbox."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EmulatorError

if TYPE_CHECKING:
    from buildkit_tasks.run.sandbox.supervisor import KernelRefusal

__all__ = ["SandboxUnavailable", "explain_unavailable"]

_MIN_VERSION = (6, 7)  # of Linux: binfmt_misc per user namespace
_SYSCTL_ROOT = Path("/proc/sys")
_APPARMOR_REASON = (
    "AppArmor denies user namespaces to programs without a profile:"
    " sysctl kernel.apparmor_restrict_unprivileged_userns is 1"
)


class SandboxUnavailable(EmulatorError):
    """The kernel does not allow this user a sandbox."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="inv run-emulated --runner=docker")


def explain_unavailable(refusal: KernelRefusal, sysctl_root: Path = _SYSCTL_ROOT, release: str = "") -> str:
    """Describe a refusal with its most likely cause: an old kernel, a sysctl, or a container around us."""
    release = release or os.uname().release
    causes = [*_list_blocking_sysctls(sysctl_root), *_detect_seccomp_filter()]
    if _parse_version(release) < _MIN_VERSION:
        causes.insert(0, f"Linux {release} has one binfmt_misc table for all; 6.7 has one per user namespace")
    return f"the sandbox is not available: {refusal}" + "".join(f" ({cause})" for cause in causes[:1])


def _list_blocking_sysctls(sysctl_root: Path) -> list[str]:
    blocking_values = {
        "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces is 0"),
        "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone is 0"),
        "kernel/apparmor_restrict_unprivileged_userns": ("1", _APPARMOR_REASON),
    }
    is_unprivileged = os.geteuid() != 0
    return [
        reason
        for name, (value, reason) in blocking_values.items()
        if _read_text(sysctl_root / name) == value and (is_unprivileged or name.startswith("user/"))
    ]


def _detect_seccomp_filter() -> list[str]:
    """Return a cause if a seccomp filter is active (proc_pid_status(5)): we are probably in a container."""
    status = _read_text(Path("/proc/self/status"))
    match = re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    return ["a seccomp filter is active, as in containers"] if match else []


def _parse_version(release: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
