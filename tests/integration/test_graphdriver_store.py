"""An engine with the classic image store: a second private one, beside the first."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import PrivateEnginePaths, ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.sdk import connect_client, inspect_image
from buildkit_tasks.system.command import SubprocessRunner
from tests.integration.test_outputs import DOCKERFILE, TWO
from tests.support.project import Project, program

NAME = "graph"


@pytest.fixture(scope="module")
def graph(engine: Engine) -> Iterator[Engine]:
    """The second engine; its data is removed with it."""
    settings, run = load_settings(), SubprocessRunner(dry_run_output=sys.stderr)
    if engine.kind != "private":
        try:
            yield ensure_private_engine(settings, run, lambda _: None, store="graph", name=NAME)
        except EngineError as error:
            pytest.skip(f"no private engine beside this one: {error}")
    else:
        yield ensure_private_engine(settings, run, lambda _: None, store="graph", name=NAME)
    stop_private_engine(settings, run, lambda _: None, name=NAME)
    paths = PrivateEnginePaths(cache_folder(settings), NAME)
    assert not paths.root.exists()
    assert not paths.runtime_dir.exists()


@pytest.fixture
def tiny(graph: Engine, project: Project) -> Project:
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
    env = {"INVOKE_BUILDKIT_PLATFORMS": ",".join(TWO), "INVOKE_BUILDKIT_DRIVER": "docker", **graph.env}
    return project.write({"Dockerfile": DOCKERFILE, **files}).with_env(**env)


def test_the_store_is_told(tiny: Project, graph: Engine) -> None:
    assert graph.store == "graph"
    setup = tiny.json("setup-builder", "--platform=linux/amd64")
    assert (setup["engine"]["store"], setup["engine"]["endpoint"]) == ("graph", graph.endpoint)


def test_load_gives_tag_per_platform(tiny: Project, graph: Engine) -> None:
    done = tiny.task("build-multiarch", "--json", "--load", "-t", "tiny:1")
    tags = ["tiny:1-linux-amd64", "tiny:1-linux-arm64"]
    assert done.document["outputs"] == [{"type": "docker", "ref": tag} for tag in tags]
    assert "one tag for each platform" in done.stderr
    assert all(f"loaded {tag}" in done.stderr for tag in tags)
    client = connect_client(graph)
    found = {tag: (inspect_image(client, tag) or {})["Architecture"] for tag in tags}
    client.close()
    assert found == {"tiny:1-linux-amd64": "amd64", "tiny:1-linux-arm64": "arm64"}
    ran = tiny.json("run-emulated", f"docker-daemon:{tags[1]}", "--platform=linux/arm64")
    assert [row["outcome"] for row in ran["results"]] == ["passed"]


def test_type_docker_takes_one_platform(tiny: Project) -> None:
    done = tiny.task("build-multiarch", "-t", "both:1", "-o", "type=docker", expect=2)
    assert "containerd image store" in done.stderr
    assert "try: " in done.stderr
    assert "[internal]" not in done.stderr  # what BuildKit says first


def test_index_is_refused(tiny: Project) -> None:
    done = tiny.task("build-multiarch", expect=3)
    assert "one platform at a time" in done.stderr
    assert "--engine=private" in done.stderr
    assert not (tiny.folder / "dist").exists()
