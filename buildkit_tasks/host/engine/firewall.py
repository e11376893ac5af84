"""Add and remove firewall rules with Debian's iptables, and the tables that this creates.

The rules of this package have the comment ``buildkit-tasks``; no other rule is changed.
"""

from __future__ import annotations

import shlex
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError
from buildkit_tasks.system.command import CommandOptions, CommandResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from buildkit_tasks.system.command import CommandRunner

__all__ = ["TABLES", "Firewall", "FirewallRule"]

TABLES = ("nat", "mangle", "filter")
_COMMENT = ["-m", "comment", "--comment", "buildkit-tasks"]
_NFT_PROGRAM, _LEGACY_PROGRAM = "xtables-nft-multi", "xtables-legacy-multi"

# linux/socket.h, linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_AF_NETLINK, _NETLINK_NETFILTER = 16, 12
_BATCH_BEGIN, _BATCH_END, _DELETE_TABLE = 0x10, 0x11, (10 << 8) | 2
_NFT_SUBSYSTEM, _TABLE_NAME_ATTRIBUTE = 10, 1
_REQUEST, _REQUEST_ACK = 0x1, 0x5


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """One rule: its table, chain, matches and target; the last of its chain, else the first."""

    table: str
    chain: str
    matches: tuple[str, ...]
    target: str
    is_last: bool = False

    @property
    def arguments(self) -> list[str]:
        """The arguments after ``-I CHAIN``."""
        return [*self.matches, *_COMMENT, "-j", self.target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """One of Debian's iptables programs."""

    program: Path
    env: Mapping[str, str]
    commands: CommandRunner

    @classmethod
    def find(cls, program_dir: Path, env: Mapping[str, str], commands: CommandRunner) -> Firewall:
        """Return iptables for the kernel's backend: nf_tables, else the legacy one.

        Raise :class:`EngineError` if the kernel has neither with NAT.
        """
        reason = ""
        for name in (_NFT_PROGRAM, _LEGACY_PROGRAM):
            firewall = cls(program=program_dir / name, env=env, commands=commands)
            result = firewall._run("nat", "-S")
            if result.ok:
                return firewall
            reason = result.reason
        raise EngineError(
            f"the kernel refuses NAT rules, which containers need for their network: {reason}",
            hint="run on a host or in a privileged container",
        )

    def add(self, rule: FirewallRule) -> None:
        """Add a rule that is missing. Raise :class:`EngineError` if the kernel refuses it."""
        if self._run(rule.table, "-C", rule.chain, *rule.arguments).ok:
            return
        result = self._run(rule.table, "-A" if rule.is_last else "-I", rule.chain, *rule.arguments)
        if not result.ok:
            raise EngineError(f"cannot create a firewall rule: {result.reason}")

    def remove(self, interface: str | None = None) -> None:
        """Remove the rules of this package that name ``interface``; without one, all of them."""
        for table in TABLES:
            for words in self._list_rules(table):
                if "buildkit-tasks" in words and (interface is None or interface in words):
                    self._run(table, "-D", *words[1:])

    def absent_tables(self) -> list[str]:
        """Return the tables that do not exist yet. The legacy backend creates them when it reads them."""
        if self.program.name != _NFT_PROGRAM:
            return []
        argv = [str(self.program), "iptables-save"]
        lines = self.commands.run(argv, CommandOptions(env=self.env, timeout=30)).stdout.splitlines()
        return [table for table in TABLES if f"*{table}" not in lines]

    def remove_empty_tables(self, tables: list[str]) -> None:
        """Remove those of these tables that have no rule, no chain of a user and no policy."""
        existing = {table for table in TABLES if table not in self.absent_tables()}
        for table in existing.intersection(tables):
            listed = self._run(table, "-S")
            if listed.ok and all(line.endswith(" ACCEPT") for line in listed.stdout.splitlines()):
                _delete_nft_table(table)

    def _list_rules(self, table: str) -> Iterator[list[str]]:
        for line in self._run(table, "-S").stdout.splitlines():
            if line.startswith("-A "):
                yield shlex.split(line)

    def _run(self, table: str, *arguments: str) -> CommandResult:
        argv = [str(self.program), "iptables", "--wait", "-t", table, *arguments]
        return self.commands.run(argv, CommandOptions(env=self.env, timeout=30))


def _delete_nft_table(table: str) -> None:
    """Delete a table of the family IPv4: iptables has no command for it."""
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), _TABLE_NAME_ATTRIBUTE) + name.ljust(
        -(-len(name) // 4) * 4, b"\0"
    )
    batch = (
        _netlink_message(_BATCH_BEGIN, _REQUEST, 0, _NFT_SUBSYSTEM)
        + _netlink_message(_DELETE_TABLE, _REQUEST_ACK, socket.AF_INET, 0, attribute)
        + _netlink_message(_BATCH_END, _REQUEST, 0, _NFT_SUBSYSTEM)
    )
    with socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as connection:
        connection.settimeout(30)
        connection.send(batch)
        connection.recv(4096)


def _netlink_message(kind: int, flags: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    """Return a struct nlmsghdr with a struct nfgenmsg (netlink(7))."""
    header = struct.pack("=IHHII", 20 + len(payload), kind, flags, 1, 0)
    return header + struct.pack("=BB", family, 0) + struct.pack(">H", resource) + payload
