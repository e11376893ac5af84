"""Nodes in Docker engines over tcp, TLS and ssh; in these tests each is the same engine."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.integration.hello_image import ADDRESSES_DOCKERFILE, TWO
from tests.support.engine.nodes import RunningTask, docker, sleep_program
from tests.support.engine.remote import Ssh, expose_over_ssh, expose_over_tcp, tls_endpoint
from tests.support.project import Project
from tests.support.registry.certificates import Certificate, make_certificate

AMD64, ARM64 = TWO


@dataclass(frozen=True, kw_only=True)
class TwoNodeBuilder:
    """A repository whose builder has node ``NAME-local`` here and ``NAME-remote`` at an endpoint."""

    project: Project
    engine: Engine
    name: str

    def address(self, node: str) -> str:
        """Return the address of a node's container."""
        address = "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return docker(self.engine, "inspect", address, f"buildx_buildkit_{self.name}-{node}")

    def build(self) -> None:
        """Build both platforms, and check by the addresses in the image that each node built its own."""
        self.project.task("setup-builder")
        rows = self.project.json("build-multiarch", "-o", "type=local,dest=out")["platforms"]
        assert [row["node"] for row in rows] == [f"{self.name}-local", f"{self.name}-remote"]
        for node, platform in (("local", "linux_amd64"), ("remote", "linux_arm64")):
            text = (self.project.folder / "out" / platform / "node").read_text(encoding="utf-8")
            assert re.search(rf"\b{re.escape(self.address(node))}\b", text)


CreateBuilder = Callable[[Project, str], AbstractContextManager[TwoNodeBuilder]]


@pytest.fixture
def create_builder(engine: Engine, buildkit_image: str) -> CreateBuilder:
    """Configure a builder with a second node at an endpoint, and remove it after the test."""

    @contextlib.contextmanager
    def create(project: Project, endpoint: str) -> Iterator[TwoNodeBuilder]:
        name = f"tests-{uuid.uuid4().hex[:12]}"
        nodes = [
            f"name={name}-local,platform={AMD64}",
            f"name={name}-remote,endpoint={endpoint},platform={ARM64}",
        ]
        settings = [f'name = "{name}"', f"platforms = {list(TWO)}", f"nodes = {nodes}"]
        driver = ['driver = "docker-container"', f'driver_opt = ["image={buildkit_image}"]']
        table = "\n".join(["[tool.buildkit-tasks]", *driver, *settings, ""])
        project.write({"pyproject.toml": table, "Dockerfile": ADDRESSES_DOCKERFILE})
        yield TwoNodeBuilder(project=project, engine=engine, name=name)
        # The task remove-builder would also remove this machine's handlers.
        project.with_env(**engine.env).command(*engine.tools.buildx, "rm", "--force", name)
        assert docker(engine, "ps", "--all", "--quiet", f"--filter=name={name}") == ""

    return create


CreateContext = Callable[[str, Certificate], Project]


@pytest.fixture
def create_context(project: Project, engine: Engine, tmp_path: Path) -> CreateContext:
    """Create a docker context ``tls`` for an engine with TLS, in the project's own configuration."""

    def create(endpoint: str, certificate: Certificate) -> Project:
        configured = project.with_env(DOCKER_CONFIG=str(tmp_path / "docker"))
        args = ["context", "create", "tls", f"--docker={tls_endpoint(endpoint, certificate)}"]
        assert configured.command(*engine.tools.docker, *args).code == 0
        return configured

    return create


@pytest.fixture(scope="module")
def ssh(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with expose_over_ssh(engine, tmp_path_factory.mktemp("ssh")) as server:
        yield server


def test_tcp_engine(project: Project, engine: Engine, create_builder: CreateBuilder) -> None:
    with expose_over_tcp(engine) as endpoint, create_builder(project, endpoint) as builder:
        builder.build()


def test_tls_engine_by_context(
    create_context: CreateContext, engine: Engine, create_builder: CreateBuilder, certificate: Certificate
) -> None:
    with expose_over_tcp(engine, certificate) as endpoint:
        project = create_context(endpoint, certificate)
        with create_builder(project, "tls") as builder:
            builder.build()


def test_tls_engine_rejects_client(
    create_context: CreateContext,
    engine: Engine,
    create_builder: CreateBuilder,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    other = make_certificate(tmp_path / "other")
    with expose_over_tcp(engine, certificate) as endpoint:
        project = create_context(endpoint, other)
        with create_builder(project, "tls") as builder:
            done = builder.project.task("setup-builder", expect=3)
    assert "certificate" in done.stderr
    assert f"{builder.name}-remote" in done.stderr


def test_tls_engine_without_certificate(
    project: Project, engine: Engine, create_builder: CreateBuilder, certificate: Certificate
) -> None:
    with expose_over_tcp(engine, certificate) as endpoint, create_builder(project, endpoint) as builder:
        done = builder.project.task("setup-builder", expect=3)
    assert f"node {builder.name}-remote: {endpoint} is not a Docker engine, or requires TLS" in done.stderr


def test_ssh_engine(project: Project, create_builder: CreateBuilder, ssh: Ssh) -> None:
    with create_builder(with_ssh_client(project, ssh), ssh.endpoint) as builder:
        builder.build()


def test_ssh_rejects_key(project: Project, create_builder: CreateBuilder, ssh: Ssh) -> None:
    with create_builder(project, ssh.endpoint) as builder:
        done = builder.project.task("setup-builder", expect=3)
        assert f"node {builder.name}-remote: Host key verification failed." in done.stderr
        assert "the endpoints of its nodes" in done.stderr
        rows = builder.project.json("setup-builder", "--fallback=emulate")["platforms"]
    assert [(row["node"], row["runs"]) for row in rows] == [(f"{builder.name}-local", True)] * 2


def test_ssh_engine_lost_and_back(
    project: Project, create_builder: CreateBuilder, ssh: Ssh, tmp_path: Path
) -> None:
    client = SwitchableClient(tmp_path / "bin", ssh)
    with create_builder(
        project.with_env(PATH=f"{tmp_path}/bin:{os.environ['PATH']}"), ssh.endpoint
    ) as builder:
        builder.build()
        client.disable()
        done = builder.project.task("build-multiarch", expect=3)
        assert f"error: node {builder.name}-remote: ssh://" in done.stderr
        assert "cannot be reached: client is disabled" in done.stderr
        assert not (project.folder / "dist").exists()
        for _ in range(2):  # at the second build it is no longer a node of the builder
            done = builder.project.task("build-multiarch", "--json", "--fallback=emulate")
            assert {row["node"] for row in done.document["platforms"]} == {f"{builder.name}-local"}
            assert "others emulate" in done.stderr
        client.enable()
        builder.build()


SLEEP_DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY sleep-$TARGETARCH /sleep
RUN ["/sleep"]
"""


def test_ssh_engine_stops_responding(project: Project, create_builder: CreateBuilder, ssh: Ssh) -> None:
    with create_builder(with_ssh_client(project, ssh), ssh.endpoint) as builder:
        programs = {"sleep-amd64": sleep_program(AMD64, 0), "sleep-arm64": sleep_program(ARM64, 8)}
        builder.project.write({"Dockerfile": SLEEP_DOCKERFILE, **programs})
        builder.project.task("setup-builder")
        options = ("--no-cache", "--json", "--progress=plain", "--fallback=emulate")
        build = RunningTask(builder.project, "build-multiarch", *options)
        build.wait_for(f'{ARM64} on {builder.name}-remote | #5 [2/2] RUN ["/sleep"]')
        with ssh.paused():
            done = build.wait()
        assert done.code == 0, done.stderr
        assert f"node {builder.name}-remote was lost during the build" in done.stderr
        assert {row["node"] for row in done.document["platforms"]} == {f"{builder.name}-local"}
        builder.project.write({"Dockerfile": ADDRESSES_DOCKERFILE})
        builder.build()  # the node is added again


class SwitchableClient:
    """A directory whose ``ssh`` is the real client, or a script that fails (ssh(1): exit status 255)."""

    def __init__(self, folder: Path, ssh: Ssh) -> None:
        folder.mkdir()
        self._path, self._client = folder / "ssh", ssh.path / "ssh"
        self.enable()

    def enable(self) -> None:
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(self._client)

    def disable(self) -> None:
        self._path.unlink()
        self._path.write_text("#!/bin/sh\necho client is disabled >&2\nexit 255\n", encoding="utf-8")
        self._path.chmod(0o755)


def with_ssh_client(project: Project, ssh: Ssh) -> Project:
    return project.with_env(PATH=f"{ssh.path}:{os.environ['PATH']}")
