from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.builders import steps
from tests.support.engine.nodes import OwnBuilder, docker, own_builder
from tests.support.project import Project, program

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY hello /hello\nRUN ["/hello"]\n'


@pytest.fixture
def ours(engine: Engine, buildkit_image: str) -> Iterator[OwnBuilder]:
    with own_builder(engine, buildkit_image) as builder:
        yield builder


def test_it_is_made_again_with_its_cache_and_nothing_is_left_over(ours: OwnBuilder, project: Project) -> None:
    project.write({"pyproject.toml": ours.settings(), "Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    project.task("build-multiarch")
    containers, volumes = ours.containers(), ours.volumes()
    assert (len(containers), len(volumes)) == (1, 1)

    docker(ours.engine, "rm", "--force", ours.container)
    progress = project.task("build-multiarch", "--progress=plain").stderr
    assert all(steps(progress).values()), progress
    assert (ours.containers(), ours.volumes()) == (containers, volumes)

    ours.remove()
    assert (ours.containers(), ours.volumes()) == ([], [])


def test_both_container_and_state_removed_by_hand_are_made_again(ours: OwnBuilder, project: Project) -> None:
    project.write({"pyproject.toml": ours.settings(), "Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    project.task("build-multiarch")
    docker(ours.engine, "rm", "--force", "--volumes", ours.container)
    for volume in ours.volumes():
        docker(ours.engine, "volume", "rm", volume)
    assert project.json("setup-builder")["ok"]
    progress = project.task("build-multiarch", "--progress=plain").stderr
    assert not any(steps(progress).values()), progress
