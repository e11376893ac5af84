from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import OwnBuilder, host_node, own_builder, settings_of
from tests.support.project import Project

DEBUG, TRACE = "debug = true\n", "trace = true\n"


@pytest.fixture
def ours(engine: Engine, buildkit_image: str) -> Iterator[OwnBuilder]:
    with own_builder(engine, buildkit_image) as builder:
        yield builder


def test_other_options_and_another_configuration_are_shown_and_recreate_mends_them(
    ours: OwnBuilder, project: Project
) -> None:
    config = project.folder / "buildkitd.toml"
    asked = f'buildkitd_config = "{config}"'
    project.write(
        {"pyproject.toml": ours.settings(asked), "buildkitd.toml": DEBUG, "Dockerfile": "FROM scratch"}
    )
    assert project.json("setup-builder")["ok"]
    first = ours.containers()

    done = project.task("setup-builder", "--driver-opt=env.WHO=me", expect=3)
    assert f"builder '{ours.name}' has the driver options" in done.stderr
    assert "and env.WHO=me are asked for" in done.stderr
    assert "inv setup-builder --recreate" in done.stderr

    project.write({"buildkitd.toml": TRACE})
    for task in ("setup-builder", "build-multiarch"):
        done = project.task(task, expect=3)
        assert (
            "another buildkitd.toml than the one that is asked for: it also has debug = true" in done.stderr
        )
        assert "inv setup-builder --recreate" in done.stderr
    assert ours.containers() == first

    assert project.json("setup-builder", "--recreate")["ok"]
    assert project.json("setup-builder")["ok"]
    assert ours.configuration(project.folder) == TRACE
    assert ours.containers() == first  # of the same name, and no second one


def test_another_endpoint_of_a_node_is_shown_and_recreate_mends_it(
    engine: Engine, buildkit_image: str, project: Project
) -> None:
    here = project.with_env(BUILDX_CONFIG=str(project.folder.parent / "buildx"))
    with host_node(engine, buildkit_image, "n") as one, host_node(engine, buildkit_image, "n") as two:
        here.write({"pyproject.toml": settings_of([one.option()], ["linux/amd64"])})
        assert here.json("setup-builder")["ok"]
        here.write({"pyproject.toml": settings_of([two.option()], ["linux/amd64"])})
        done = here.task("setup-builder", expect=3)
        assert f"has node n at {one.endpoint}, and {two.endpoint} is asked for" in done.stderr
        told = here.json("setup-builder", "--recreate")
        assert [node["endpoint"] for node in told["builder"]["nodes"]] == [two.endpoint]
