"""Create two private networks in a network namespace, and print who can connect with whom as JSON.

Run it with ``unshare --mount --net``; the argument is the value of ``ip_forward`` to begin with. Containers
are namespaces with a port at the bridge; neighbours are namespaces that route to the private subnets
through this one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine.private import _private_network
from buildkit_tasks.host.engine.private_network import PrivateNetwork
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import SubprocessRunner

NEIGHBOURS = {"neighbour-a": "192.0.2", "neighbour-b": "198.51.100"}
IPV4, IPV6 = Path("/proc/sys/net/ipv4"), Path("/proc/sys/net/ipv6")
SERVER = """import socket
server = socket.create_server(("0.0.0.0", 8000))
print(flush=True)
while True:
    server.accept()[0].close()
"""
CLIENT = "import socket, sys; socket.create_connection((sys.argv[1], 8000), 2).close()"


def ip(arguments: str) -> str:
    return subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True).stdout


def prepare(forward: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    ip("link set lo up")
    for number, (name, prefix) in enumerate(NEIGHBOURS.items()):
        ip(f"netns add {name}")
        ip(f"link add out{number} type veth peer name port netns {name}")
        connect(name, f"{prefix}.2", f"{prefix}.1")
        ip(f"address add {prefix}.1/24 dev out{number}")
        ip(f"link set out{number} up")
    (IPV4 / "ip_forward").write_text(forward)
    (IPV4 / "conf/out1/forwarding").write_text(forward)
    (IPV4 / "conf/all/accept_redirects").write_text("0")


def connect(name: str, address: str, gateway: str) -> None:
    ip(f"-n {name} address add {address}/24 dev port")
    ip(f"-n {name} link set port up")
    ip(f"-n {name} route add default via {gateway}")


def add_container(network: PrivateNetwork, name: str) -> str:
    """Connect a namespace with the bridge; return its address."""
    subnet = network._read_subnet()
    ip(f"netns add {name}")
    ip(f"link add {name} type veth peer name port netns {name}")
    ip(f"link set {name} master {network.bridge} up")
    connect(name, str(subnet[2]), str(subnet[1]))
    return str(subnet[2])


@contextmanager
def server(name: str) -> Iterator[None]:
    argv = ["ip", "netns", "exec", name, sys.executable, "-c", SERVER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def connections(addresses: dict[str, str]) -> list[str]:
    """Return each pair of a client and a server that can connect."""
    pairs = [(client, name) for client in addresses for name in addresses if client != name]
    return [f"{client} > {name}" for client, name in pairs if can_connect(client, addresses[name])]


def can_connect(client: str, address: str) -> bool:
    argv = ["ip", "netns", "exec", client, sys.executable, "-c", CLIENT, address]
    return subprocess.run(argv, check=False, stderr=subprocess.DEVNULL).returncode == 0


def census(network: PrivateNetwork) -> dict[str, str]:
    """Return the rules, links, routes and settings of this namespace."""
    environment = {**os.environ, **network.env}
    programs = [f"{name}-save" for name in ("iptables", "ip6tables")]
    argv = [str(network.program_dir / "xtables-nft-multi")]
    settings = [*IPV4.glob("conf/*/*"), *IPV6.glob("conf/*/forwarding"), IPV4 / "ip_forward"]
    return {
        **{name: subprocess.check_output([*argv, name], env=environment, text=True) for name in programs},
        "links": " ".join(sorted(name for _, name in socket.if_nameindex())),
        "routes": ip("route") + ip("-6 route"),
        **{str(path): path.read_text() for path in settings if os.access(path, os.R_OK)},
    }


def main(forward: str) -> None:
    prepare(forward)
    cache, commands = cache_folder(load_settings()), SubprocessRunner()
    networks = [
        _private_network(PrivateEnginePaths(cache, name), commands) for name in ("private-a", "private-b")
    ]
    before = census(networks[0])
    for network in networks:
        network.create()
        network.create()  # the engine is started again after a kill
    addresses = {name: f"{prefix}.2" for name, prefix in NEIGHBOURS.items()}
    containers = ("container-a", "container-b")
    for network, name in zip(networks, containers, strict=True):
        addresses[name] = add_container(network, name)
    with server("neighbour-a"), server("neighbour-b"), server("container-a"), server("container-b"):
        both = connections(addresses)
        ip("link del container-a")
        networks[0].remove()
        one = connections({name: addresses[name] for name in ("neighbour-a", "container-b")})
    ipv6 = (IPV6 / f"conf/{networks[1].bridge}/disable_ipv6").read_text().strip()
    ip("link del container-b")
    networks[1].remove()
    networks[1].remove()
    after = census(networks[0])
    changed = {name: (before.get(name), after.get(name)) for name in before | after}
    left = {name: values for name, values in changed.items() if values[0] != values[1]}
    json.dump({"both": both, "one": one, "disable_ipv6": ipv6, "left": left}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
