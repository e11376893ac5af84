from __future__ import annotations

from tests.support.engine.builders import steps
from tests.support.engine.nodes import TemporaryBuilder, docker
from tests.support.project import Project, program

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY hello /hello\nRUN ["/hello"]\n'


def test_container_removed(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings(), "Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    project.task("build-multiarch")
    containers, volumes = builder.containers(), builder.volumes()
    assert (len(containers), len(volumes)) == (1, 1)

    docker(builder.engine, "rm", "--force", builder.container)
    progress = project.task("build-multiarch", "--progress=plain").stderr
    assert all(steps(progress).values()), progress
    assert (builder.containers(), builder.volumes()) == (containers, volumes)

    builder.remove()
    assert (builder.containers(), builder.volumes()) == ([], [])


def test_container_and_state_removed(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings(), "Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    project.task("build-multiarch")
    docker(builder.engine, "rm", "--force", "--volumes", builder.container)
    for volume in builder.volumes():
        docker(builder.engine, "volume", "rm", volume)
    assert project.json("setup-builder")["ok"]
    progress = project.task("build-multiarch", "--progress=plain").stderr
    assert not any(steps(progress).values()), progress
