from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.sdk import connect_client
from buildkit_tasks.system.command import SubprocessRunner
from tests.integration.hello_image import DOCKERFILE
from tests.support import census
from tests.support.engine.events import record_container_events
from tests.support.project import Project, program

AMD64 = "buildkit-tasks-test/amd64-only:1"
MISLABELLED = "buildkit-tasks-test/mislabelled-arm64:1"
TOOLS = SubprocessRunner(dry_run_output=sys.stderr)


@pytest.fixture(scope="module")
def classic_engine(engine: Engine) -> Iterator[Engine]:
    """An engine with the classic store; it is removed with its data afterwards."""
    assert engine.version
    name = "graph-local-image"
    try:
        yield ensure_private_engine(load_settings(), TOOLS, lambda _: None, store="graph", name=name)
    except EngineError as error:
        pytest.skip(f"no private engine beside this one: {error}")
    stop_private_engine(load_settings(), TOOLS, lambda _: None, name=name)


@pytest.fixture(params=["containerd", "graph"])
def store(request: pytest.FixtureRequest, engine: Engine) -> Engine:
    chosen: Engine = request.getfixturevalue("classic_engine") if request.param == "graph" else engine
    assert chosen.store == request.param
    return chosen


@pytest.fixture
def loaded(store: Engine, project: Project) -> Iterator[Project]:
    """A project with two loaded images: one for amd64, and one labelled arm64 with an amd64 program."""
    env = {"INVOKE_BUILDKIT_DRIVER": "docker", "INVOKE_BUILDKIT_RUNNER": "docker", **store.env}
    files = {"hello-amd64": program("linux/amd64"), "hello-arm64": program("linux/amd64")}
    project = project.write({"Dockerfile": DOCKERFILE, **files}).with_env(**env)
    project.task("build-multiarch", "--load", "-t", AMD64, "--platform=linux/amd64")
    project.task("build-multiarch", "--load", "-t", MISLABELLED, "--platform=linux/arm64")
    yield project
    with contextlib.closing(connect_client(store)) as client:
        for name in (AMD64, MISLABELLED):
            client.images.remove(name, force=True)


@contextlib.contextmanager
def _unchanged(store: Engine, project: Project) -> Iterator[None]:
    before = census.take(store, project.folder.parent)
    yield
    assert before.differences(census.take(store, project.folder.parent)) == {}


def test_platform_not_in_image(store: Engine, loaded: Project) -> None:
    with _unchanged(store, loaded), record_container_events(store) as events:
        report = loaded.json("run-emulated", f"docker-daemon:{AMD64}", "--platform=linux/arm64", expect=1)
    (result,) = report["results"]
    assert (result["platform"], result["outcome"], result["exit_code"]) == ("linux/arm64", "failed", None)
    assert result["message"].startswith("linux/arm64 is not in the image, which holds linux/amd64")
    assert events == []


def test_other_platform_is_run(store: Engine, loaded: Project) -> None:
    with _unchanged(store, loaded), record_container_events(store) as events:
        platforms = "--platform=linux/amd64,linux/arm64"
        report = loaded.json("run-emulated", f"docker-daemon:{AMD64}", platforms, expect=1)
    assert [result["outcome"] for result in report["results"]] == ["passed", "failed"]
    assert sum(event["Action"] == "start" for event in events) == 1


def test_mislabelled_image(store: Engine, loaded: Project) -> None:
    with _unchanged(store, loaded), record_container_events(store) as events:
        report = loaded.json(
            "run-emulated", f"docker-daemon:{MISLABELLED}", "--platform=linux/arm64", expect=1
        )
    (result,) = report["results"]
    assert result["outcome"] == "wrong-arch"
    assert "is made for amd64, not for arm64" in result["message"]
    assert "start" not in {event["Action"] for event in events}
