"""The driver remote by each kind of endpoint that a BuildKit here can have: tcp, a socket, its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import Node, host_node, remote_settings
from tests.support.project import Project, program

AMD64, ARM64 = TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
RUN ["/hello"]
CMD ["/hello"]
"""
SOON = 15.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A BuildKit that listens at a tcp endpoint and at a socket in a folder of this machine."""

    node: Node
    folder: Path

    def endpoint(self, kind: str) -> str:
        """Where it is, as that kind of endpoint."""
        return {
            "tcp": self.node.endpoint,
            "unix": f"unix://{self.folder}/buildkitd.sock",
            "docker-container": f"docker-container://{self.node.container}",
        }[kind]


@pytest.fixture(scope="module")
def reached(
    engine: Engine, buildkit_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reached]:
    folder = tmp_path_factory.mktemp("socket")
    options = [f"--volume={folder}:/run/buildkit"]
    more = ["--addr", "unix:///run/buildkit/buildkitd.sock"]
    with host_node(engine, buildkit_image, "own", options=options, arguments=more) as node:
        yield Reached(node=node, folder=folder)


@pytest.fixture
def mine(project: Project, engine: Engine, tmp_path: Path) -> Project:
    """A repository whose buildx has a store of its own, and finds docker's client and the engine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").symlink_to(engine.tools.docker[0])
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
    return project.write({"Dockerfile": DOCKERFILE, **files}).with_env(
        BUILDX_CONFIG=str(tmp_path / "buildx"),
        DOCKER_HOST=engine.endpoint,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    )


@pytest.mark.parametrize("kind", ["tcp", "unix", "docker-container"])
def test_each_endpoint_kind(mine: Project, reached: Reached, kind: str) -> None:
    node = f"name=own,endpoint={reached.endpoint(kind)}"
    mine.write({"pyproject.toml": remote_settings([node], TWO)})
    assert [(row["node"], row["runs"]) for row in mine.json("setup-builder")["platforms"]] == [
        ("own", True)
    ] * 2
    built = mine.json("build-multiarch")
    assert mine.json("verify-arch", "--platform", ",".join(TWO))["digest"] == built["digest"]


@pytest.mark.parametrize("endpoint", ["unix:///nowhere/buildkitd.sock", "tcp://127.0.0.1:1"])
def test_unreachable_endpoint(mine: Project, endpoint: str) -> None:
    mine.write({"pyproject.toml": remote_settings([f"name=own,endpoint={endpoint}"], TWO)})
    done = mine.task("setup-builder", expect=3)
    assert f"node own: nothing listens at {endpoint}: " in done.stderr
    assert done.seconds < SOON
    assert not list(Path(mine.env["BUILDX_CONFIG"]).glob("instances/*"))
