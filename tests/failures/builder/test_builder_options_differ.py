from __future__ import annotations

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import TemporaryBuilder, host_node, remote_settings
from tests.support.project import Project

DEBUG, TRACE = "debug = true\n", "trace = true\n"


def test_recreate_after_changed_settings(builder: TemporaryBuilder, project: Project) -> None:
    settings = builder.settings(f'buildkitd_config = "{project.folder / "buildkitd.toml"}"')
    project.write({"pyproject.toml": settings, "buildkitd.toml": DEBUG, "Dockerfile": "FROM scratch"})
    assert project.json("setup-builder")["ok"]
    first = builder.containers()

    done = project.task("setup-builder", "--driver-opt=env.WHO=me", expect=3)
    assert f"builder '{builder.name}' has the driver options" in done.stderr
    assert "instead of env.WHO=me" in done.stderr
    assert " setup-builder --recreate" in done.stderr

    project.write({"buildkitd.toml": TRACE})
    for task in ("setup-builder", "build-multiarch"):
        done = project.task(task, expect=3)
        assert "has another buildkitd.toml: it also has debug = true" in done.stderr
        assert " setup-builder --recreate" in done.stderr
    assert builder.containers() == first

    assert project.json("setup-builder", "--recreate")["ok"]
    assert project.json("setup-builder")["ok"]
    assert builder.configuration(project.folder) == TRACE
    assert builder.containers() == first  # one container with the same name


def test_recreate_after_changed_endpoint(engine: Engine, buildkit_image: str, project: Project) -> None:
    here = project.with_env(BUILDX_CONFIG=str(project.folder.parent / "buildx"))
    with host_node(engine, buildkit_image, "n") as one, host_node(engine, buildkit_image, "n") as two:
        here.write({"pyproject.toml": remote_settings([one.option()], ["linux/amd64"])})
        assert here.json("setup-builder")["ok"]
        here.write({"pyproject.toml": remote_settings([two.option()], ["linux/amd64"])})
        done = here.task("setup-builder", expect=3)
        assert f"has node n at {one.endpoint} instead of {two.endpoint}" in done.stderr
        report = here.json("setup-builder", "--recreate")
        assert [node["endpoint"] for node in report["builder"]["nodes"]] == [two.endpoint]
