"""Nodes in Docker engines that are reached by tcp, by TLS and by ssh; here the same engine each time."""

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
from tests.support.engine.nodes import RunningTask, docker, sleep_program
from tests.support.engine.remote import Ssh, expose_over_ssh, expose_over_tcp, tls_endpoint
from tests.support.project import Project
from tests.support.registry.certificates import Certificate, make_certificate

AMD64, ARM64 = TWO = ("linux/amd64", "linux/arm64")
SEEN = """\
FROM alpine:latest
RUN cp /proc/net/fib_trie /node
"""
SOON = 15.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A repository whose builder has node ``NAME-here`` in the engine here, ``NAME-there`` elsewhere."""

    project: Project
    engine: Engine
    name: str

    def address(self, node: str) -> str:
        """The address of a node's container."""
        form = "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return docker(self.engine, "inspect", form, f"buildx_buildkit_{self.name}-{node}")

    def build(self) -> None:
        """Build both platforms; each must have been built by its own node, which the image shows."""
        self.project.task("setup-builder")
        rows = self.project.json("build-multiarch", "-o", "type=local,dest=out")["platforms"]
        assert [row["node"] for row in rows] == [f"{self.name}-here", f"{self.name}-there"]
        for node, platform in (("here", "linux_amd64"), ("there", "linux_arm64")):
            text = (self.project.folder / "out" / platform / "node").read_text(encoding="utf-8")
            assert re.search(rf"\b{re.escape(self.address(node))}\b", text)


Asking = Callable[[Project, str], AbstractContextManager[Elsewhere]]


@pytest.fixture
def asking(engine: Engine, buildkit_image: str) -> Asking:
    """Asks for a builder with a node at an endpoint; in the end nothing of it is left."""

    @contextlib.contextmanager
    def ask(project: Project, endpoint: str) -> Iterator[Elsewhere]:
        name = f"tests-{uuid.uuid4().hex[:12]}"
        nodes = [
            f"name={name}-here,platform={AMD64}",
            f"name={name}-there,endpoint={endpoint},platform={ARM64}",
        ]
        own = [f'name = "{name}"', f"platforms = {list(TWO)}", f"nodes = {nodes}"]
        driver = ['driver = "docker-container"', f'driver_opt = ["image={buildkit_image}"]']
        table = "\n".join(["[tool.buildkit-tasks]", *driver, *own, ""])
        yield Elsewhere(
            project=project.write({"pyproject.toml": table, "Dockerfile": SEEN}), engine=engine, name=name
        )
        # As buildx does it: `remove-builder` would also remove this machine's handlers.
        project.with_env(**engine.env).command(*engine.tools.buildx, "rm", "--force", name)
        assert docker(engine, "ps", "--all", "--quiet", f"--filter=name={name}") == ""

    return ask


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def context(project: Project, engine: Engine, tmp_path: Path) -> Callable[[str, Certificate], Project]:
    """Makes a docker context named ``there`` for an engine behind TLS, in a configuration of its own."""

    def make(endpoint: str, certificate: Certificate) -> Project:
        mine = project.with_env(DOCKER_CONFIG=str(tmp_path / "docker"))
        words = ["context", "create", "there", f"--docker={tls_endpoint(endpoint, certificate)}"]
        assert mine.command(*engine.tools.docker, *words).code == 0
        return mine

    return make


@pytest.fixture(scope="module")
def ssh(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with expose_over_ssh(engine, tmp_path_factory.mktemp("ssh")) as way:
        yield way


def test_tcp_engine_is_not_buildkit(project: Project, engine: Engine, asking: Asking) -> None:
    with expose_over_tcp(engine) as endpoint, asking(project, endpoint) as builder:
        builder.build()


def test_tls_engine_by_context(
    context: Callable[[str, Certificate], Project], engine: Engine, asking: Asking, certificate: Certificate
) -> None:
    with expose_over_tcp(engine, certificate) as endpoint:
        mine = context(endpoint, certificate)
        with asking(mine, "there") as builder:
            builder.build()


def test_tls_engine_rejects_client(
    context: Callable[[str, Certificate], Project],
    engine: Engine,
    asking: Asking,
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    other = make_certificate(tmp_path / "other")
    with expose_over_tcp(engine, certificate) as endpoint:
        mine = context(endpoint, other)
        with asking(mine, "there") as builder:
            done = builder.project.task("setup-builder", expect=3)
    assert "certificate" in done.stderr
    assert f"{builder.name}-there" in done.stderr


def test_tls_engine_is_not_silent(
    project: Project, engine: Engine, asking: Asking, certificate: Certificate
) -> None:
    with expose_over_tcp(engine, certificate) as endpoint, asking(project, endpoint) as builder:
        done = builder.project.task("setup-builder", expect=3)
    assert f"node {builder.name}-there: {endpoint} is not a Docker engine, or requires TLS" in done.stderr
    assert done.seconds < SOON


def test_an_engine_behind_ssh(project: Project, asking: Asking, ssh: Ssh) -> None:
    with asking(with_client(project, ssh), ssh.endpoint) as builder:
        builder.build()


def test_ssh_rejects_key(project: Project, asking: Asking, ssh: Ssh) -> None:
    with asking(project, ssh.endpoint) as builder:
        done = builder.project.task("setup-builder", expect=3)
        assert f"node {builder.name}-there: Host key verification failed." in done.stderr
        assert "the endpoints of its nodes" in done.stderr
        rows = builder.project.json("setup-builder", "--fallback=emulate")["platforms"]
    assert [(row["node"], row["runs"]) for row in rows] == [(f"{builder.name}-here", True)] * 2


def test_ssh_engine_lost_and_back(project: Project, asking: Asking, ssh: Ssh, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    way = Switch(away, ssh)
    with asking(project.with_env(PATH=f"{away}:{os.environ['PATH']}"), ssh.endpoint) as builder:
        builder.build()
        way.close()
        done = builder.project.task("build-multiarch", expect=3)
        assert f"error: node {builder.name}-there: ssh://" in done.stderr
        assert "cannot be reached: nobody gets in" in done.stderr
        assert done.seconds < SOON
        assert not (project.folder / "dist").exists()
        for _ in range(2):  # the second time it is no longer a node of the builder
            done = builder.project.task("build-multiarch", "--json", "--fallback=emulate")
            assert {row["node"] for row in done.document["platforms"]} == {f"{builder.name}-here"}
            assert "others emulate" in done.stderr
        way.open()
        builder.build()


SLEEPY = """\
FROM scratch
ARG TARGETARCH
COPY sleep-$TARGETARCH /sleep
RUN ["/sleep"]
"""


def test_ssh_engine_goes_silent(project: Project, asking: Asking, ssh: Ssh) -> None:
    with asking(with_client(project, ssh), ssh.endpoint) as builder:
        files = {
            f"sleep-{name.rpartition('/')[2]}": sleep_program(name, 8 if name == ARM64 else 0) for name in TWO
        }
        builder.project.write({"Dockerfile": SLEEPY, **files})
        builder.project.task("setup-builder")
        words = ("build-multiarch", "--no-cache", "--json", "--progress=plain", "--fallback=emulate")
        build = RunningTask(builder.project, *words)
        build.wait_for(f'{ARM64} on {builder.name}-there | #5 [2/2] RUN ["/sleep"]')
        with ssh.paused():
            done = build.wait(90)
        assert done.code == 0, done.stderr
        assert f"node {builder.name}-there was lost during the build" in done.stderr
        assert {row["node"] for row in done.document["platforms"]} == {f"{builder.name}-here"}
        builder.project.write({"Dockerfile": SEEN})
        builder.build()  # it is back, and is taken in again


class Switch:
    """A folder whose ``ssh`` is the real client, or fails as one that finds nobody."""

    def __init__(self, folder: Path, ssh: Ssh) -> None:
        self._place, self._client = folder / "ssh", ssh.path / "ssh"
        self.open()

    def open(self) -> None:
        """Let the client through."""
        self._place.unlink(missing_ok=True)
        self._place.symlink_to(self._client)

    def close(self) -> None:
        """Let nobody through."""
        self._place.unlink()
        self._place.write_text("#!/bin/sh\necho nobody gets in >&2\nexit 255\n", encoding="utf-8")
        self._place.chmod(0o755)


def with_client(project: Project, ssh: Ssh) -> Project:
    return project.with_env(PATH=f"{ssh.path}:{os.environ['PATH']}")
