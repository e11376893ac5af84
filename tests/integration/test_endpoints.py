"""The driver remote with each kind of endpoint: tcp, a unix socket and a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.integration.hello_image import RUN_DOCKERFILE, TWO, hello_programs
from tests.support.engine.nodes import Node, host_node, remote_settings
from tests.support.project import Project


@dataclass(frozen=True, kw_only=True)
class ListeningNode:
    """A BuildKit that listens at a tcp endpoint and at ``folder/buildkitd.sock``."""

    node: Node
    folder: Path

    def endpoint(self, kind: str) -> str:
        """Return the node's endpoint of this kind."""
        return {
            "tcp": self.node.endpoint,
            "unix": f"unix://{self.folder}/buildkitd.sock",
            "docker-container": f"docker-container://{self.node.container}",
        }[kind]


@pytest.fixture(scope="module")
def listening_node(
    engine: Engine, buildkit_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ListeningNode]:
    folder = tmp_path_factory.mktemp("socket")
    options = [f"--volume={folder}:/run/buildkit"]
    arguments = ["--addr", "unix:///run/buildkit/buildkitd.sock"]
    with host_node(engine, buildkit_image, "own", options=options, arguments=arguments) as node:
        yield ListeningNode(node=node, folder=folder)


@pytest.fixture
def project(project: Project, engine: Engine, tmp_path: Path) -> Project:
    """A repository with its own buildx configuration, docker's client on PATH and the engine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").symlink_to(engine.tools.docker[0])
    return project.write({"Dockerfile": RUN_DOCKERFILE, **hello_programs()}).with_env(
        BUILDX_CONFIG=str(tmp_path / "buildx"),
        DOCKER_HOST=engine.endpoint,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    )


@pytest.mark.parametrize("kind", ["tcp", "unix", "docker-container"])
def test_each_endpoint_kind(project: Project, listening_node: ListeningNode, kind: str) -> None:
    node = f"name=own,endpoint={listening_node.endpoint(kind)}"
    project.write({"pyproject.toml": remote_settings([node], TWO)})
    rows = project.json("setup-builder")["platforms"]
    assert [(row["node"], row["runs"]) for row in rows] == [("own", True)] * 2
    built = project.json("build-multiarch")
    assert project.json("verify-arch", "--platform", ",".join(TWO))["digest"] == built["digest"]


@pytest.mark.parametrize("endpoint", ["unix:///missing/buildkitd.sock", "tcp://127.0.0.1:1"])
def test_unreachable_endpoint(project: Project, endpoint: str) -> None:
    project.write({"pyproject.toml": remote_settings([f"name=own,endpoint={endpoint}"], TWO)})
    done = project.task("setup-builder", expect=3)
    assert f"node own: nothing listens at {endpoint}: " in done.stderr
    assert not list(Path(project.env["BUILDX_CONFIG"]).glob("instances/*"))
