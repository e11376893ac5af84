from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import private_network
from buildkit_tasks.host.engine.private_network import PrivateNetwork
from tests.support.scripted import Scripted

ROUTES_HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


def format_word(address: ipaddress.IPv4Address) -> str:
    return f"{int.from_bytes(address.packed, sys.byteorder):08X}"


def find_free_subnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *networks: str) -> str:
    """Return the subnet that is chosen on a host with routes to these networks."""
    rows = (
        f"eth0\t{format_word(each.network_address)}\t00000000\t0001\t0\t0\t0\t{format_word(each.netmask)}\t0\n"
        for each in map(ipaddress.IPv4Network, networks)
    )
    path = tmp_path / "route"
    path.write_text("".join([ROUTES_HEADER, *rows]))
    monkeypatch.setattr(private_network, "Path", lambda _: path)
    return str(private_network._find_free_subnet())


@pytest.mark.parametrize(
    ("networks", "subnet"),
    [
        ((), "172.29.0.0/24"),
        (("0.0.0.0/0", "10.0.0.0/8"), "172.29.0.0/24"),
        (("172.29.0.0/24",), "172.29.1.0/24"),
        (("172.29.0.128/25", "172.29.1.7/32"), "172.29.2.0/24"),
        (("172.29.0.0/17",), "172.29.128.0/24"),
    ],
)
def test_subnet_overlaps_no_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: tuple[str, ...], subnet: str
) -> None:
    assert find_free_subnet(tmp_path, monkeypatch, *networks) == subnet


def test_no_free_subnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="no free subnet"):
        find_free_subnet(tmp_path, monkeypatch, "172.16.0.0/12")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Return iptables without rules, on a router whose bridge has the subnet 172.29.3.0/24."""
    monkeypatch.setattr(private_network, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(private_network, "_HOST_STATE", tmp_path / "state")
    monkeypatch.setattr(private_network, "is_forwarding", lambda: True)
    monkeypatch.setattr(private_network, "enable_forwarding", lambda: None)
    monkeypatch.setattr(PrivateNetwork, "_create_bridge", lambda _: None)
    monkeypatch.setattr(PrivateNetwork, "_read_subnet", lambda _: ipaddress.IPv4Network("172.29.3.0/24"))
    return Scripted().expect("*/xtables-* iptables*").expect("* -C *", returncode=1)


def create(commands: Scripted) -> None:
    PrivateNetwork(bridge="bkt-0", program_dir=Path("/p"), env={}, commands=commands).create()


def list_added_rules(commands: Scripted) -> list[str]:
    calls = (*commands.matching_calls("* -I *"), *commands.matching_calls("* -A *"))
    return [call.line.partition(" -t ")[2] for call in calls]


def test_firewall_rules(commands: Scripted) -> None:
    create(commands)
    comment, replies = "-m comment --comment buildkit-tasks", "--ctstate RELATED,ESTABLISHED"
    assert list_added_rules(commands) == [
        f"nat -I POSTROUTING -s 172.29.3.0/24 '!' -o bkt-0 {comment} -j MASQUERADE",
        f"mangle -I FORWARD '!' -i bkt-0 -o bkt-0 -m conntrack '!' {replies} {comment} -j DROP",
        f"mangle -I FORWARD '!' -s 172.29.3.0/24 -i bkt-0 {comment} -j DROP",
        f"filter -I FORWARD -i bkt-0 {comment} -j ACCEPT",
        f"filter -I FORWARD -o bkt-0 -m conntrack {replies} {comment} -j ACCEPT",
    ]


def test_host_without_forwarding(commands: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_network, "is_forwarding", lambda: False)
    create(commands)
    assert list_added_rules(commands)[-1] == "filter -A FORWARD -m comment --comment buildkit-tasks -j DROP"


def test_existing_rules_are_not_added_again(commands: Scripted) -> None:
    create(commands.expect("* -C *"))
    assert list_added_rules(commands) == []


def test_refused_rule_is_an_error(commands: Scripted) -> None:
    with pytest.raises(EngineError, match="cannot create a firewall rule: no conntrack"):
        create(commands.expect("* -I *conntrack*", returncode=1, stderr="no conntrack\n"))


def test_legacy_iptables_without_nf_tables(commands: Scripted) -> None:
    create(commands.expect("*/xtables-nft-multi *", returncode=1))
    assert {call.argv[0] for call in commands.matching_calls("* -I *")} == {"/p/xtables-legacy-multi"}


def test_kernel_without_nat(commands: Scripted) -> None:
    with pytest.raises(EngineError, match="the kernel refuses NAT rules"):
        create(commands.expect("*/xtables-*-multi *", returncode=1))
