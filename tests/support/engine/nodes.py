"""Machines for builders: a BuildKit each, in containers of the private engine, which listen by tcp.

On the engine's bridge each has a network namespace, an address and a host name of its own. On the
host's network it sees the registries of the loopback interface.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.host.builder import BuilderManager
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.ports import free_port, listens
from tests.support.project import TASKS, Done, Project, program
from tests.support.registry.certificates import Certificate

__all__ = [
    "Going",
    "Node",
    "OwnBuilder",
    "docker",
    "host_node",
    "own_builder",
    "settings_of",
    "several",
    "sleeper",
]

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

    @property
    def runs(self) -> bool:
        """Whether the container runs."""
        return docker(self.engine, "inspect", "--format={{.State.Running}}", self.container) == "true"

    def do(self, verb: str) -> None:
        """Kill, pause, unpause, stop or start it; what is started listens again."""
        docker(self.engine, verb, self.container)
        if verb in ("start", "unpause"):
            _await(self.endpoint)


def docker(engine: Engine, *arguments: str) -> str:
    """Run docker's client, which must succeed; gives what it prints."""
    done = SubprocessRunner().run(
        [*engine.tools.docker, *arguments], engine.command_options(timeout=_SECONDS)
    )
    assert done.ok, done.stderr
    return done.stdout.strip()


def settings_of(nodes: Sequence[str], platforms: Sequence[str], name: str = "fleet") -> str:
    """A pyproject.toml that asks for a builder of these nodes (options ``--node``)."""
    values = [node.removeprefix("--node=") for node in nodes]
    lines = ['driver = "remote"', f'name = "{name}"', f"platforms = {list(platforms)}", f"nodes = {values}"]
    return "\n".join(["[tool.buildkit-tasks]", *lines, ""])


@dataclass(frozen=True, kw_only=True)
class OwnBuilder:
    """A builder of the driver docker-container that the product makes and that a test may break."""

    engine: Engine
    image: str
    name: str

    def remove(self) -> None:
        """As `remove-builder` does it, which would also remove this machine's handlers."""
        BuilderManager(
            engine=self.engine, settings=load_settings(), commands=SubprocessRunner(), notify=lambda _: None
        ).remove(self.name)

    @property
    def container(self) -> str:
        """As buildx names the container of its first node."""
        return f"buildx_buildkit_{self.name}0"

    def settings(self, *lines: str, platforms: Sequence[str] = ("linux/amd64",)) -> str:
        """A pyproject.toml that asks for it, with more lines."""
        options = [f"image={self.image}", "network=host"]
        own = [f'name = "{self.name}"', f"platforms = {list(platforms)}", f"driver_opt = {options}"]
        return "\n".join(["[tool.buildkit-tasks]", 'driver = "docker-container"', *own, *lines, ""])

    def containers(self) -> list[str]:
        """Those that are there."""
        return docker(
            self.engine, "ps", "--all", f"--filter=name={self.container}", "--format={{.Names}}"
        ).split()

    def configuration(self, folder: Path) -> str:
        """Its buildkitd.toml, copied into a folder."""
        place = folder / "copied.toml"
        docker(self.engine, "cp", f"{self.container}:/etc/buildkit/buildkitd.toml", str(place))
        return place.read_text(encoding="utf-8")

    def arguments(self) -> list[str]:
        """How its buildkitd was started."""
        found: list[str] = json.loads(
            docker(self.engine, "inspect", "--format={{json .Args}}", self.container)
        )
        return found

    def buildctl(self, *arguments: str) -> str:
        """Ask its BuildKit from inside the container."""
        return docker(self.engine, "exec", self.container, "buildctl", *arguments)

    def volumes(self) -> list[str]:
        """Those that are there."""
        return docker(self.engine, "volume", "ls", f"--filter=name={self.container}", "--quiet").split()


@contextlib.contextmanager
def own_builder(engine: Engine, image: str) -> Iterator[OwnBuilder]:
    """A name for a builder, which is removed with all that it has."""
    builder = OwnBuilder(engine=engine, image=image, name=f"tests-{uuid.uuid4().hex[:12]}")
    yield builder
    builder.remove()
    assert (builder.containers(), builder.volumes()) == ([], [])


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
    endpoint = f"tcp://{address}:{free_port(address)}"
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
        if listens(host, int(port)):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at {endpoint}")


class Going:
    """A task that runs and can be looked at meanwhile; its stderr is read as it comes."""

    def __init__(self, project: Project, *argv: str) -> None:
        self._started = time.monotonic()
        self._child = project.start((*TASKS, *argv))
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def until(self, words: str) -> None:
        """Wait until a line has these words."""
        deadline = time.monotonic() + _SECONDS
        while not any(words in line for line in self._lines):
            assert self._child.poll() is None, "".join(self._lines)
            assert time.monotonic() < deadline, "".join(self._lines)
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Press Ctrl-C, which reaches the task alone: what it started has sessions of its own."""
        self._child.send_signal(signal.SIGINT)

    def end(self, timeout: float = _SECONDS) -> Done:
        """Wait for its end; one that takes longer is killed."""
        try:
            self._child.wait(timeout)
        finally:
            if self._child.poll() is None:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        stdout = self._child.stdout.read()
        self._child.stdout.close()
        seconds = time.monotonic() - self._started
        return Done(code=self._child.returncode, stdout=stdout, stderr="".join(self._lines), seconds=seconds)

    def _read(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            self._lines.extend(lines)


def sleeper(platform: str, seconds: int) -> bytes:
    """A tiny program of linux/amd64 or linux/arm64 that sleeps and ends with 0."""
    amd64 = "48 8d 3d 12 00 00 00  31 f6  b8 23 00 00 00  0f 05  31 ff  b8 3c 00 00 00  0f 05"
    arm64 = "e0 00 00 10  01 00 80 d2  a8 0c 80 d2  01 00 00 d4  00 00 80 d2  a8 0b 80 d2  01 00 00 d4"
    code = {"linux/amd64": amd64, "linux/arm64": arm64}[platform]
    return program(platform, code=f"{code} {struct.pack('<qq', seconds, 0).hex()}")
