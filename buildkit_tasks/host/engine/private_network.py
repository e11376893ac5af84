"""Create the network of the private engine: a bridge with an address, and three firewall rules.

dockerd is configured to use this bridge and no firewall rules of its own. By default it would use
``docker0`` and docker's firewall chains, which may belong to another dockerd of this host (and with
``bridge: none`` it deletes ``docker0``). Only what is created here is removed, by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError
from buildkit_tasks.system.command import CommandOptions
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
# Held from the search for a free subnet until a bridge has it: two engines may start at once.
_SUBNET_LOCK = Path("/run/buildkit-tasks/.subnet.lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateNetwork:
    """The bridge and its firewall rules; ``program_dir`` is the directory of Debian's iptables."""

    bridge: str
    program_dir: Path
    env: Mapping[str, str]
    commands: CommandRunner

    def create(self) -> None:
        """Create the bridge, its address and the rules that are missing. Raise :class:`EngineError`."""
        iptables = self._find_iptables()
        try:
            with file_lock(_SUBNET_LOCK):
                self._create_bridge()
        except OSError as error:
            raise EngineError(
                f"cannot create the bridge {self.bridge}: {error.strerror}",
                hint="run on a host or in a privileged container",
            ) from error
        for table, chain, rule in self._firewall_rules():
            argv = [*iptables, "--wait", "-t", table]
            if not self._run_iptables([*argv, "-C", chain, *rule]):
                self._run_iptables([*argv, "-I", chain, *rule], check=True)

    def remove(self) -> None:
        """Remove the rules and the bridge, if they exist."""
        if not (Path("/sys/class/net") / self.bridge).exists():
            return
        iptables = self._find_iptables()
        for table, chain, rule in self._firewall_rules():
            self._run_iptables([*iptables, "--wait", "-t", table, "-D", chain, *rule])
        with _open_control_socket() as control, contextlib.suppress(OSError):
            _set_link_state(control, self.bridge, up=False)
            fcntl.ioctl(control, _SIOCBRDELBR, _encode_name(self.bridge))

    def _create_bridge(self) -> None:
        with _open_control_socket() as control:
            if not (Path("/sys/class/net") / self.bridge).exists():
                fcntl.ioctl(control, _SIOCBRADDBR, _encode_name(self.bridge))
                subnet = _find_free_subnet()
                fcntl.ioctl(control, _SIOCSIFADDR, _pack_ifreq(self.bridge, subnet[1]))
                fcntl.ioctl(control, _SIOCSIFNETMASK, _pack_ifreq(self.bridge, subnet.netmask))
            _set_link_state(control, self.bridge, up=True)

    def _firewall_rules(self) -> Iterator[tuple[str, str, list[str]]]:
        """Containers connect with this host's address (NAT); only replies reach them."""
        comment = ["-m", "comment", "--comment", "buildkit-tasks"]
        source = str(self._read_subnet())
        yield "nat", "POSTROUTING", ["-s", source, "!", "-o", self.bridge, *comment, "-j", "MASQUERADE"]
        yield "filter", "FORWARD", ["-i", self.bridge, *comment, "-j", "ACCEPT"]
        established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        yield "filter", "FORWARD", ["-o", self.bridge, *established, *comment, "-j", "ACCEPT"]

    def _read_subnet(self) -> ipaddress.IPv4Network:
        with _open_control_socket() as control:
            ifreq = fcntl.ioctl(control, _SIOCGIFADDR, _pack_ifreq(self.bridge, ipaddress.IPv4Address(0)))
        address = ipaddress.IPv4Address(ifreq[20:24])
        return ipaddress.IPv4Network((address, _SUBNET_BITS), strict=False)

    def _find_iptables(self) -> list[str]:
        """Return Debian's iptables for the kernel's backend: nf_tables, else the legacy one."""
        reason = ""
        for name in ("xtables-nft-multi", "xtables-legacy-multi"):
            argv = [str(self.program_dir / name), "iptables"]
            result = self.commands.run(
                [*argv, "--wait", "-t", "nat", "-S"], CommandOptions(env=self.env, timeout=30)
            )
            if result.ok:
                return argv
            reason = result.reason
        raise EngineError(
            f"the kernel refuses NAT rules, which containers need for their network: {reason}",
            hint="run on a host or in a privileged container",
        )

    def _run_iptables(self, argv: list[str], *, check: bool = False) -> bool:
        result = self.commands.run(argv, CommandOptions(env=self.env, timeout=30))
        if check and not result.ok:
            raise EngineError(f"cannot create a firewall rule: {result.reason}")
        return result.ok


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
