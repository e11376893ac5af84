"""Nodes that are killed, hang or do not run, before and during a build on several machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support import census
from tests.support.engine.nodes import Node, RunningTask, host_node, remote_settings, sleep_program
from tests.support.project import Project, repository

AMD64, ARM64 = TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY sleep-$TARGETARCH /sleep
RUN ["/sleep"]
CMD ["/sleep"]
"""
STEP = 'linux/arm64 on b | #5 [2/2] RUN ["/sleep"]'
DETECTION_SECONDS = 30.0  # until a node that dies during a build is reported


@dataclass(frozen=True, kw_only=True)
class TwoNodes:
    """A project with two nodes: a builds for amd64, and b for arm64, which takes longer."""

    project: Project
    a: Node
    b: Node


@pytest.fixture(scope="module")
def nodes(engine: Engine, buildkit_image: str) -> Iterator[tuple[Node, ...]]:
    # On the host's network they keep their addresses when they are restarted.
    with host_node(engine, buildkit_image, "a") as a, host_node(engine, buildkit_image, "b") as b:
        yield a, b


@pytest.fixture
def two_nodes(nodes: tuple[Node, ...], tmp_path: Path) -> Iterator[TwoNodes]:
    (tmp_path / "repo").mkdir()
    project = repository(tmp_path).with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))
    options = [node.option(platform=platform) for node, platform in zip(nodes, TWO, strict=True)]
    programs = {"sleep-amd64": sleep_program(AMD64, 0), "sleep-arm64": sleep_program(ARM64, 4)}
    project.write({"pyproject.toml": remote_settings(options, TWO), "Dockerfile": DOCKERFILE, **programs})
    project.task("setup-builder")
    a, b = nodes
    yield TwoNodes(project=project, a=a, b=b)
    if not b.is_running:
        b.docker("start")


def build_nodes(document: dict[str, object]) -> list[tuple[str, str, bool]]:
    """Return platform, node and nativeness of each build."""
    platforms = document["platforms"]
    assert isinstance(platforms, list)
    return [(each["platform"], each["node"], each["native"]) for each in platforms]


def test_node_killed_during_build(two_nodes: TwoNodes) -> None:
    build = RunningTask(two_nodes.project, "build-multiarch", "--no-cache", "--progress=plain")
    build.wait_for(STEP)
    two_nodes.b.docker("kill")
    done = build.wait(DETECTION_SECONDS)
    assert done.code == 3
    assert "error: linux/arm64: node b was lost during the build" in done.stderr
    assert "--fallback=emulate" in done.stderr
    assert not (two_nodes.project.folder / "dist").exists()


def test_interrupt_ends_all_builds(two_nodes: TwoNodes, tmp_path: Path) -> None:
    two_nodes.project.write({"sleep-arm64": sleep_program(ARM64, 300)})
    before = census.take(None, tmp_path)
    build = RunningTask(two_nodes.project, "build-multiarch", "--no-cache", "--progress=plain")
    build.wait_for(STEP)
    build.interrupt()
    done = build.wait(DETECTION_SECONDS)
    assert (done.code, "error: interrupted" in done.stderr) == (130, True)
    assert "was lost" not in done.stderr
    assert before.differences(census.take(None, tmp_path)) == {}
    assert not (two_nodes.project.folder / "dist").exists()


def test_fallback_during_build(two_nodes: TwoNodes) -> None:
    build = RunningTask(
        two_nodes.project, "build-multiarch", "--no-cache", "--json", "--progress=plain", "--fallback=emulate"
    )
    build.wait_for(STEP)
    two_nodes.b.docker("kill")
    done = build.wait(DETECTION_SECONDS + 30)
    assert done.code == 0, done.stderr
    assert build_nodes(done.document) == [(AMD64, "a", True), (ARM64, "a", False)]
    assert "node b was lost during the build" in done.stderr
    verified = two_nodes.project.json("verify-arch", "--platform", ",".join(TWO))
    assert verified["digest"] == done.document["digest"]
    # Once the node runs again, setup-builder adds it to the builder.
    two_nodes.b.docker("start")
    setup = two_nodes.project.task("setup-builder", "--json")
    assert "adding b to builder fleet again" in setup.stderr
    assert [(each["platform"], each["node"]) for each in setup.document["platforms"]] == [
        (AMD64, "a"),
        (ARM64, "b"),
    ]
    again = two_nodes.project.json("build-multiarch", "--no-cache")
    assert build_nodes(again) == [(AMD64, "a", True), (ARM64, "b", False)]


def test_node_hangs_during_build(two_nodes: TwoNodes) -> None:
    build = RunningTask(
        two_nodes.project, "build-multiarch", "--no-cache", "--json", "--progress=plain", "--fallback=emulate"
    )
    build.wait_for(STEP)
    two_nodes.b.docker("pause")
    try:
        done = build.wait()
    finally:
        two_nodes.b.docker("unpause")
    assert done.code == 0, done.stderr
    assert "accepts connections but sends nothing" in done.stderr
    assert build_nodes(done.document) == [(AMD64, "a", True), (ARM64, "a", False)]


def test_dead_node_before_build(two_nodes: TwoNodes) -> None:
    two_nodes.b.docker("kill")
    done = two_nodes.project.task("build-multiarch", expect=3)
    assert f"node b: nothing listens at {two_nodes.b.endpoint}" in done.stderr
    assert "--fallback=emulate" in done.stderr


def test_fallback_before_build(two_nodes: TwoNodes) -> None:
    two_nodes.b.docker("kill")
    done = two_nodes.project.task("build-multiarch", "--json", "--fallback=emulate")
    assert build_nodes(done.document) == [(AMD64, "a", True), (ARM64, "a", False)]
    assert "node b is not used, others emulate its platforms" in done.stderr
    two_nodes.b.docker("start")
    platforms = two_nodes.project.json("setup-builder")["platforms"]
    assert [(each["platform"], each["node"]) for each in platforms] == [(AMD64, "a"), (ARM64, "b")]


def test_no_node_left(two_nodes: TwoNodes) -> None:
    two_nodes.a.docker("kill")
    two_nodes.b.docker("kill")
    try:
        done = two_nodes.project.task("build-multiarch", "--fallback=emulate", expect=3)
    finally:
        two_nodes.a.docker("start")
    assert "node a: nothing listens" in done.stderr
    assert "node b: nothing listens" in done.stderr
