"""Create the network of the private engine: a bridge with an address, and firewall rules.

dockerd is configured to use this bridge and no firewall rules of its own. By default it would use
``docker0`` and docker's firewall chains, which may belong to another dockerd of this host (and with
``bridge: none`` it deletes ``docker0``). Only what is created here is removed, by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.firewall import Firewall, FirewallRule
from buildkit_tasks.host.engine.forwarding import (
    enable_forwarding,
    is_forwarding,
    read_settings,
    restore_forwarding,
)
from buildkit_tasks.host.engine.private_paths import BRIDGE_PREFIX
from buildkit_tasks.system.files import write_atomically
from buildkit_tasks.system.lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.system.command import CommandRunner

__all__ = ["PrivateNetwork"]

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFADDR, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8915, 0x8916, 0x891C
_SIOCBRADDBR, _SIOCBRDELBR = 0x89A0, 0x89A1
_IFF_UP = 1
_ADDRESS_POOL = ipaddress.IPv4Network("172.29.0.0/16")
_SUBNET_BITS = 24
# Held while a network is created or removed: two engines may start or stop at once.
_LOCK = Path("/run/buildkit-tasks/.network.lock")
_HOST_STATE = Path("/run/buildkit-tasks/.network.json")
# dockerd and containerd's shims create them whatever their configuration, the innermost first.
_SHARED_FOLDERS = ("/run/containerd/s", "/run/containerd", "/run/docker/plugins", "/run/docker")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateNetwork:
    """The bridge and its firewall rules; ``program_dir`` is the directory of Debian's iptables."""

    bridge: str
    program_dir: Path
    env: Mapping[str, str]
    commands: CommandRunner

    def create(self) -> None:
        """Create the bridge, its address and the rules that are missing. Raise :class:`EngineError`."""
        firewall = self._find_firewall()
        try:
            with file_lock(_LOCK):
                host_state = _read_host_state() or _new_host_state(firewall)
                self._create_bridge()
                if not is_forwarding():
                    host_state["settings"] = _settings_of_host()
                write_atomically(_HOST_STATE, json.dumps(host_state))
                for rule in self._firewall_rules(is_router=not host_state["settings"]):
                    firewall.add(rule)
                enable_forwarding()
        except OSError as error:
            raise EngineError(
                f"cannot create the bridge {self.bridge}: {error.strerror}",
                hint="run on a host or in a privileged container",
            ) from error

    def remove(self) -> None:
        """Remove the rules and the bridge, if they exist; the last one restores the settings of the host."""
        if not _exists(self.bridge) and (_list_bridges() or not os.access(_HOST_STATE, os.W_OK)):
            return  # as for a user who has no engine
        with file_lock(_LOCK):
            firewall = self._find_firewall()
            self._remove_bridge()
            if _list_bridges():
                firewall.remove(self.bridge)
            else:
                _restore_host(firewall)

    def _find_firewall(self) -> Firewall:
        return Firewall.find(self.program_dir, self.env, self.commands)

    def _create_bridge(self) -> None:
        with _open_control_socket() as control:
            if not _exists(self.bridge):
                fcntl.ioctl(control, _SIOCBRADDBR, _encode_name(self.bridge))
                _disable_ipv6(self.bridge)
                subnet = _find_free_subnet()
                fcntl.ioctl(control, _SIOCSIFADDR, _pack_ifreq(self.bridge, subnet[1]))
                fcntl.ioctl(control, _SIOCSIFNETMASK, _pack_ifreq(self.bridge, subnet.netmask))
            _set_link_state(control, self.bridge, up=True)

    def _remove_bridge(self) -> None:
        with _open_control_socket() as control, contextlib.suppress(OSError):
            _set_link_state(control, self.bridge, up=False)
            fcntl.ioctl(control, _SIOCBRDELBR, _encode_name(self.bridge))

    def _firewall_rules(self, *, is_router: bool) -> Iterator[FirewallRule]:
        """Containers connect with this host's address (NAT); only replies reach them.

        Packets are dropped in ``mangle``, before a rule of another program in ``filter`` can accept them
        (Docker accepts all packets from its own bridges). Those inside the bridge pass: br_netfilter shows
        them to the firewall. A host that was no router forwards nothing else because of the engine.
        """
        source, bridge = str(self._read_subnet()), self.bridge
        conntrack, replies = ("-m", "conntrack"), ("--ctstate", "RELATED,ESTABLISHED")
        yield FirewallRule("nat", "POSTROUTING", ("-s", source, "!", "-o", bridge), "MASQUERADE")
        strangers = ("!", "-i", bridge, "-o", bridge, *conntrack, "!", *replies)
        yield FirewallRule("mangle", "FORWARD", strangers, "DROP")
        yield FirewallRule("mangle", "FORWARD", ("!", "-s", source, "-i", bridge), "DROP")
        yield FirewallRule("filter", "FORWARD", ("-i", bridge), "ACCEPT")
        yield FirewallRule("filter", "FORWARD", ("-o", bridge, *conntrack, *replies), "ACCEPT")
        if not is_router:
            yield FirewallRule("filter", "FORWARD", (), "DROP", is_last=True)

    def _read_subnet(self) -> ipaddress.IPv4Network:
        with _open_control_socket() as control:
            ifreq = fcntl.ioctl(control, _SIOCGIFADDR, _pack_ifreq(self.bridge, ipaddress.IPv4Address(0)))
        address = ipaddress.IPv4Address(ifreq[20:24])
        return ipaddress.IPv4Network((address, _SUBNET_BITS), strict=False)


def _exists(bridge: str) -> bool:
    return bridge in _list_bridges()


def _list_bridges() -> list[str]:
    """Return the bridges of all private engines of this network namespace."""
    return [name for _, name in socket.if_nameindex() if name.startswith(BRIDGE_PREFIX)]


def _settings_of_host() -> dict[str, str]:
    """Return the settings that forwarding changes, without those of the engines' own bridges."""
    settings = read_settings()
    return {path: value for path, value in settings.items() if f"/{BRIDGE_PREFIX}" not in path}


def _read_host_state() -> dict[str, Any] | None:
    """Return what the host was like before its first private engine, or None if there is none."""
    try:
        state: dict[str, Any] = json.loads(_HOST_STATE.read_bytes())
    except (OSError, ValueError):
        return None
    return state


def _new_host_state(firewall: Firewall) -> dict[str, Any]:
    """Return what the host lacks before its first private engine; the settings follow if they are changed."""
    folders = [folder for folder in _SHARED_FOLDERS if not Path(folder).exists()]
    return {"tables": firewall.absent_tables(), "settings": {}, "folders": folders}


def _restore_host(firewall: Firewall) -> None:
    """Restore what the first private engine changed; the state is kept until that is done."""
    state = _read_host_state() or {"tables": [], "settings": {}, "folders": []}
    if state["settings"]:
        restore_forwarding(state["settings"])
    firewall.remove()
    firewall.remove_empty_tables(state["tables"])
    for folder in state["folders"]:
        with contextlib.suppress(OSError):  # it is in use by another program, or was never created
            Path(folder).rmdir()
    _HOST_STATE.unlink(missing_ok=True)


def _disable_ipv6(bridge: str) -> None:
    """Keep containers from changing the host's IPv6 routes with router advertisements."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6").write_text("1", encoding="ascii")


def _open_control_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _encode_name(bridge: str) -> bytes:
    return bridge.encode().ljust(16, b"\0")


def _pack_ifreq(bridge: str, address: ipaddress.IPv4Address) -> bytes:
    """Return a struct ifreq with a struct sockaddr_in (netdevice(7))."""
    return struct.pack("16sHH4s16x", bridge.encode(), socket.AF_INET, 0, address.packed)


def _set_link_state(control: socket.socket, bridge: str, *, up: bool) -> None:
    ifreq = struct.pack("16sH22x", bridge.encode(), 0)
    flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, ifreq), 16)[0]
    flags = flags | _IFF_UP if up else flags & ~_IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", bridge.encode(), flags))


def _find_free_subnet() -> ipaddress.IPv4Network:
    """Return a subnet of the pool that does not overlap with a route of this host."""
    lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    routes = [_parse_route(line.split()) for line in lines]
    routed = [route for route in routes if route.prefixlen]
    for subnet in _ADDRESS_POOL.subnets(new_prefix=_SUBNET_BITS):
        if not any(subnet.overlaps(route) for route in routed):
            return subnet
    raise EngineError(f"no free subnet in {_ADDRESS_POOL} for the private engine's bridge")


def _parse_route(fields: list[str]) -> ipaddress.IPv4Network:
    """Return the network of a line of /proc/net/route: hexadecimal words in the host's byte order."""
    addresses = (int(fields[index], 16).to_bytes(4, sys.byteorder) for index in (1, 7))
    destination, mask = map(ipaddress.IPv4Address, addresses)
    return ipaddress.IPv4Network((destination, str(mask)), strict=False)
