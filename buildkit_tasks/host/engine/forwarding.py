"""Turn IPv4 forwarding of this host on for a while, and restore every setting that this changes.

The kernel changes three kinds of settings with ``ip_forward``: ``conf/default/forwarding``, that of each
interface, and ``conf/all/accept_redirects`` (kernel document networking/ip-sysctl). IPv6 is never forwarded.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["enable_forwarding", "is_forwarding", "read_settings", "restore_forwarding"]

_SETTINGS = Path("/proc/sys/net/ipv4")
_INTERFACES = Path("/sys/class/net")


def is_forwarding() -> bool:
    """Return whether this host forwards IPv4 packets."""
    return (_SETTINGS / "ip_forward").read_text(encoding="ascii").strip() == "1"


def enable_forwarding() -> None:
    """Let this host forward IPv4 packets. Raise :class:`OSError` if the kernel refuses it."""
    (_SETTINGS / "ip_forward").write_text("1", encoding="ascii")


def read_settings() -> dict[str, str]:
    """Return the settings that turning forwarding on changes, by their path below net/ipv4."""
    paths = [
        *(path for path in _SETTINGS.glob("conf/*/forwarding") if path.parent.name != "all"),
        _SETTINGS / "conf/all/accept_redirects",
    ]
    return {str(path.relative_to(_SETTINGS)): path.read_text(encoding="ascii").strip() for path in paths}


def restore_forwarding(settings: dict[str, str]) -> None:
    """Turn forwarding off and restore ``settings``, unless another program of the host relies on it.

    That is the case if the host has a bridge that it did not have when the settings were read (Docker,
    libvirt and Podman create one each), or if forwarding has been turned off since.
    """
    if not is_forwarding() or _list_bridges() - {Path(path).parent.name for path in settings}:
        return
    (_SETTINGS / "ip_forward").write_text("0", encoding="ascii")
    for path, value in settings.items():
        with contextlib.suppress(OSError):  # of an interface that is gone
            (_SETTINGS / path).write_text(value, encoding="ascii")


def _list_bridges() -> set[str]:
    return {path.parent.name for path in _INTERFACES.glob("*/bridge")}
