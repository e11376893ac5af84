"""Machines for builders: a BuildKit each, in containers of the private engine, which listen by tcp.

On the engine's bridge each has a network namespace, an address and a host name of its own. On the
host's network it sees the registries of the loopback interface.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from buildkit_tasks.commands import Commands
from buildkit_tasks.engine import Engine
from tests.certificates import Certificate

__all__ = ["Node", "docker", "host_node", "settings_of", "several"]

_PORT = 1234
_SECONDS = 60.0
_CERTIFICATES = "/certificates"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A container with a BuildKit that listens at ``endpoint``; ``host`` is what ``uname -n`` says there."""

    engine: Engine
    name: str
    container: str
    endpoint: str
    host: str

    def option(self, **more: str) -> str:
        """The node as ``--node`` takes it."""
        pairs = {"name": self.name, "endpoint": self.endpoint, **more}
        return "--node=" + ",".join(f"{key}={value}" for key, value in pairs.items())

    @property
    def address(self) -> str:
        """The address alone."""
        return self.endpoint.removeprefix("tcp://").rpartition(":")[0]

    def buildctl(self, *arguments: str) -> str:
        """Ask its BuildKit from inside the container."""
        return docker(self.engine, "exec", self.container, "buildctl", f"--addr={self.endpoint}", *arguments)

    def do(self, verb: str) -> None:
        """Kill, pause, unpause, stop or start it; what is started listens again."""
        docker(self.engine, verb, self.container)
        if verb in ("start", "unpause"):
            _await(self.endpoint)


def docker(engine: Engine, *arguments: str) -> str:
    """Run docker's client, which must succeed; gives what it prints."""
    done = Commands().run([*engine.tools.docker, *arguments], engine.call(timeout=_SECONDS))
    assert done.ok, done.stderr
    return done.stdout.strip()


def settings_of(nodes: Sequence[str], platforms: Sequence[str], name: str = "fleet") -> str:
    """A pyproject.toml that asks for a builder of these nodes (options ``--node``)."""
    values = [node.removeprefix("--node=") for node in nodes]
    lines = ['driver = "remote"', f'name = "{name}"', f"platforms = {list(platforms)}", f"nodes = {values}"]
    return "\n".join(["[tool.buildkit-tasks]", *lines, ""])


@contextlib.contextmanager
def several(engine: Engine, image: str, names: Sequence[str]) -> Iterator[tuple[Node, ...]]:
    """Nodes of these names on the bridge, each with an address of its own."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = [
            stack.enter_context(_container(engine, image, f"--hostname=node-{name}")) for name in names
        ]
        nodes = tuple(
            Node(
                engine=engine,
                name=name,
                container=container,
                endpoint=f"tcp://{_address(engine, container)}:{_PORT}",
                host=f"node-{name}",
            )
            for name, container in zip(names, started, strict=True)
        )
        list(pool.map(lambda node: _await(node.endpoint), nodes))
        yield nodes


@contextlib.contextmanager
def host_node(  # noqa: PLR0913 - the last ones are keywords with defaults
    engine: Engine,
    image: str,
    name: str,
    *,
    tls: Certificate | None = None,
    options: Sequence[str] = (),
    arguments: Sequence[str] = (),
    address: str = "127.0.0.1",
) -> Iterator[Node]:
    """A node on the host's network; with ``tls`` it asks its clients for a certificate of that authority.

    ``options`` are those of ``docker create``, ``arguments`` those of buildkitd.
    """
    endpoint = f"tcp://{address}:{_free_port(address)}"
    with _container(
        engine, image, "--network=host", *options, addr=endpoint, arguments=arguments, tls=tls
    ) as container:
        _await(endpoint)
        yield Node(
            engine=engine, name=name, container=container, endpoint=endpoint, host=socket.gethostname()
        )


@contextlib.contextmanager
def _container(
    engine: Engine,
    image: str,
    *options: str,
    addr: str = f"tcp://0.0.0.0:{_PORT}",
    arguments: Sequence[str] = (),
    tls: Certificate | None = None,
) -> Iterator[str]:
    """A running container of BuildKit, by its id; it and its volumes are removed in the end."""
    state = (
        () if any("/var/lib/buildkit" in option for option in options) else ("--volume=/var/lib/buildkit",)
    )
    files = {"tlscacert": "ca.crt", "tlscert": "server.crt", "tlskey": "server.key"} if tls else {}
    given = [f"--{option}={_CERTIFICATES}/{name}" for option, name in files.items()]
    container = docker(
        engine,
        "create",
        "--privileged",
        "--init",
        *state,
        *options,
        image,
        "--addr",
        addr,
        *given,
        *arguments,
    )
    try:
        if tls is not None:
            docker(engine, "cp", f"{tls.certificate.parent}/.", f"{container}:{_CERTIFICATES}")
        docker(engine, "start", container)
        yield container
    finally:
        docker(engine, "rm", "--force", "--volumes", container)


def _address(engine: Engine, container: str) -> str:
    networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker(engine, "inspect", f"--format={networks}", container)


def _await(endpoint: str) -> None:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at {endpoint}")


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
