"""Builds with the docker driver of an engine that has the classic image store."""

from __future__ import annotations

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client, inspect_image
from tests.integration.hello_image import DOCKERFILE, TWO, hello_programs
from tests.support.project import Project


@pytest.fixture
def project(graph_engine: Engine, project: Project) -> Project:
    env = {"INVOKE_BUILDKIT_PLATFORMS": ",".join(TWO), "INVOKE_BUILDKIT_DRIVER": "docker", **graph_engine.env}
    return project.write({"Dockerfile": DOCKERFILE, **hello_programs()}).with_env(**env)


def test_store_is_reported(project: Project, graph_engine: Engine) -> None:
    assert graph_engine.store == "graph"
    setup = project.json("setup-builder", "--platform=linux/amd64")
    assert (setup["engine"]["store"], setup["engine"]["endpoint"]) == ("graph", graph_engine.endpoint)


def test_load_gives_tag_per_platform(project: Project, graph_engine: Engine) -> None:
    done = project.task("build-multiarch", "--json", "--load", "-t", "tiny:1")
    tags = ["tiny:1-linux-amd64", "tiny:1-linux-arm64"]
    assert done.document["outputs"] == [{"type": "docker", "ref": tag} for tag in tags]
    assert "one tag for each platform" in done.stderr
    assert all(f"loaded {tag}" in done.stderr for tag in tags)
    client = connect_client(graph_engine)
    architectures = {tag: (inspect_image(client, tag) or {})["Architecture"] for tag in tags}
    client.close()
    assert architectures == {"tiny:1-linux-amd64": "amd64", "tiny:1-linux-arm64": "arm64"}
    ran = project.json("run-emulated", f"docker-daemon:{tags[1]}", "--platform=linux/arm64")
    assert [row["outcome"] for row in ran["results"]] == ["passed"]


def test_type_docker_takes_one_platform(project: Project) -> None:
    done = project.task("build-multiarch", "-t", "both:1", "-o", "type=docker", expect=2)
    assert "containerd image store" in done.stderr
    assert "try: " in done.stderr
    assert "[internal]" not in done.stderr  # the prefix of BuildKit's own message


def test_index_is_refused(project: Project) -> None:
    done = project.task("build-multiarch", expect=3)
    assert "one platform at a time" in done.stderr
    assert "--engine=private" in done.stderr
    assert not (project.folder / "dist").exists()
