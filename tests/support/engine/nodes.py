"""Run BuildKit daemons as nodes of builders, in containers that listen on tcp.

On the engine's bridge each has its own address and host name. On the host's network it can reach the
registries on the loopback interface.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
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
from tests.support.project import TASKS, Project, program
from tests.support.registry.certificates import Certificate
from tests.support.task_server import CompletedCommand
from tests.support.waiting import wait_until

__all__ = [
    "Node",
    "RunningTask",
    "TemporaryBuilder",
    "bridge_nodes",
    "docker",
    "host_node",
    "remote_settings",
    "sleep_program",
    "temporary_builder",
]

_PORT = 1234
_SECONDS = 300.0  # a busy machine needs several times what an idle one does
_CERTIFICATES = "/certificates"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A container with a BuildKit that listens at ``endpoint``; ``host`` is its ``uname -n``."""

    engine: Engine
    name: str
    container: str
    endpoint: str
    host: str

    def option(self, **more: str) -> str:
        """Return the option ``--node`` for the node."""
        pairs = {"name": self.name, "endpoint": self.endpoint, **more}
        return "--node=" + ",".join(f"{key}={value}" for key, value in pairs.items())

    @property
    def address(self) -> str:
        """The host of the endpoint."""
        return self.endpoint.removeprefix("tcp://").rpartition(":")[0]

    def buildctl(self, *arguments: str) -> str:
        """Run ``buildctl`` in the container."""
        return docker(self.engine, "exec", self.container, "buildctl", f"--addr={self.endpoint}", *arguments)

    @property
    def is_running(self) -> bool:
        return docker(self.engine, "inspect", "--format={{.State.Running}}", self.container) == "true"

    def docker(self, command: str) -> None:
        """Kill, pause, unpause, stop or start the container; wait until a started one listens."""
        docker(self.engine, command, self.container)
        if command in ("start", "unpause"):
            _wait_for_listener(self.endpoint)


def docker(engine: Engine, *arguments: str) -> str:
    """Run docker's client, which must succeed, and return its output."""
    result = SubprocessRunner().run(
        [*engine.tools.docker, *arguments], engine.command_options(timeout=_SECONDS)
    )
    assert result.ok, result.stderr
    return result.stdout.strip()


def remote_settings(nodes: Sequence[str], platforms: Sequence[str], name: str = "fleet") -> str:
    """Return a pyproject.toml with a remote builder of these nodes (options ``--node``)."""
    values = [node.removeprefix("--node=") for node in nodes]
    lines = ['driver = "remote"', f'name = "{name}"', f"platforms = {list(platforms)}", f"nodes = {values}"]
    return "\n".join(["[tool.buildkit-tasks]", *lines, ""])


@dataclass(frozen=True, kw_only=True)
class TemporaryBuilder:
    """A builder with the driver docker-container, which the tasks create and a test may break."""

    engine: Engine
    image: str
    name: str

    def remove(self) -> None:
        """Remove the builder, but not the binfmt_misc handlers, which ``remove-builder`` removes too."""
        BuilderManager(
            engine=self.engine, settings=load_settings(), commands=SubprocessRunner(), notify=lambda _: None
        ).remove(self.name)

    @property
    def container(self) -> str:
        """The container of its first node, as buildx names it."""
        return f"buildx_buildkit_{self.name}0"

    def settings(self, *lines: str, platforms: Sequence[str] = ("linux/amd64",)) -> str:
        """Return a pyproject.toml with this builder and more lines."""
        driver_opts = [f"image={self.image}", "network=host"]
        builder = [f'name = "{self.name}"', f"platforms = {list(platforms)}", f"driver_opt = {driver_opts}"]
        return "\n".join(["[tool.buildkit-tasks]", 'driver = "docker-container"', *builder, *lines, ""])

    def containers(self) -> list[str]:
        """List its containers."""
        return docker(
            self.engine, "ps", "--all", f"--filter=name={self.container}", "--format={{.Names}}"
        ).split()

    def configuration(self, folder: Path) -> str:
        """Read its buildkitd.toml, through a copy in ``folder``."""
        path = folder / "copied.toml"
        docker(self.engine, "cp", f"{self.container}:/etc/buildkit/buildkitd.toml", str(path))
        return path.read_text(encoding="utf-8")

    def arguments(self) -> list[str]:
        """Return the arguments of its buildkitd."""
        output = docker(self.engine, "inspect", "--format={{json .Args}}", self.container)
        arguments: list[str] = json.loads(output)
        return arguments

    def buildctl(self, *arguments: str) -> str:
        """Run ``buildctl`` in the container."""
        return docker(self.engine, "exec", self.container, "buildctl", *arguments)

    def volumes(self) -> list[str]:
        """List its volumes."""
        return docker(self.engine, "volume", "ls", f"--filter=name={self.container}", "--quiet").split()


@contextlib.contextmanager
def temporary_builder(engine: Engine, image: str) -> Iterator[TemporaryBuilder]:
    """Yield a builder that does not exist yet; remove it afterwards, with its state."""
    builder = TemporaryBuilder(engine=engine, image=image, name=f"tests-{uuid.uuid4().hex[:12]}")
    yield builder
    builder.remove()
    assert (builder.containers(), builder.volumes()) == ([], [])


@contextlib.contextmanager
def bridge_nodes(engine: Engine, image: str, names: Sequence[str]) -> Iterator[tuple[Node, ...]]:
    """Run nodes with these names on the bridge, each with its own address."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        containers = [
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
            for name, container in zip(names, containers, strict=True)
        )
        list(pool.map(lambda node: _wait_for_listener(node.endpoint), nodes))
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
    """Run a node on the host's network; with ``tls`` it requires client certificates of that authority.

    ``options`` are for ``docker create``, ``arguments`` for buildkitd.
    """
    endpoint = f"tcp://{address}:{free_port(address)}"
    with _container(
        engine, image, "--network=host", *options, addr=endpoint, arguments=arguments, tls=tls
    ) as container:
        _wait_for_listener(endpoint)
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
    """Run BuildKit in a container and yield its id; remove it and its volumes afterwards."""
    has_state = any("/var/lib/buildkit" in option for option in options)
    create = ["create", "--privileged", "--init", *options]
    create += [] if has_state else ["--volume=/var/lib/buildkit"]
    files = {"tlscacert": "ca.crt", "tlscert": "server.crt", "tlskey": "server.key"} if tls else {}
    tls_arguments = [f"--{option}={_CERTIFICATES}/{name}" for option, name in files.items()]
    container = docker(engine, *create, image, "--addr", addr, *tls_arguments, *arguments)
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


def _wait_for_listener(endpoint: str) -> None:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    wait_until(lambda: listens(host, int(port)))


class RunningTask:
    """A task in the background; a thread reads its standard error."""

    def __init__(self, project: Project, *argv: str) -> None:
        self._child = project.start((*TASKS, *argv))
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str) -> None:
        """Wait until a line contains this text."""
        wait_until(lambda: self._has_shown(text) or self._child.poll() is not None, _SECONDS)
        assert self._has_shown(text), "".join(self._lines)

    def _has_shown(self, text: str) -> bool:
        return any(text in line for line in self._lines)

    def interrupt(self) -> None:
        """Send SIGINT to the task only, as Ctrl-C does: its children have their own sessions."""
        self._child.send_signal(signal.SIGINT)

    def wait(self, timeout: float = _SECONDS) -> CompletedCommand:
        """Wait for the task to end; kill it after ``timeout`` seconds."""
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
        return CompletedCommand(code=self._child.returncode, stdout=stdout, stderr="".join(self._lines))

    def _read(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            self._lines.extend(lines)


def sleep_program(platform: str, seconds: int) -> bytes:
    """Return a program for linux/amd64 or linux/arm64 that sleeps and exits with status 0."""
    amd64 = "48 8d 3d 12 00 00 00  31 f6  b8 23 00 00 00  0f 05  31 ff  b8 3c 00 00 00  0f 05"
    arm64 = "e0 00 00 10  01 00 80 d2  a8 0c 80 d2  01 00 00 d4  00 00 80 d2  a8 0b 80 d2  01 00 00 d4"
    code = {"linux/amd64": amd64, "linux/arm64": arm64}[platform]
    return program(platform, code=f"{code} {struct.pack('<qq', seconds, 0).hex()}")
