"""Nodes that are killed, that hang, or that are not there: row 21 of the faults, for several machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support import census
from tests.support.engine.nodes import Going, Node, host_node, settings_of, sleeper
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
NOTICED = 30.0  # seconds, in which a daemon that died is noticed
QUICK = 15.0  # seconds, in which a node that is not there is told of


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A repository whose image node a builds for amd64 and node b for arm64, which takes a while."""

    project: Project
    a: Node
    b: Node


@pytest.fixture(scope="module")
def nodes(engine: Engine, buildkit_image: str) -> Iterator[tuple[Node, ...]]:
    # On the host's network: they are found at the same place when they are started again.
    with host_node(engine, buildkit_image, "a") as a, host_node(engine, buildkit_image, "b") as b:
        yield a, b


@pytest.fixture
def fleet(nodes: tuple[Node, ...], tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "repo").mkdir()
    project = repository(tmp_path).with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))
    options = [node.option(platform=platform) for node, platform in zip(nodes, TWO, strict=True)]
    files = {f"sleep-{name.rpartition('/')[2]}": sleeper(name, 4 if name == ARM64 else 0) for name in TWO}
    project.write({"pyproject.toml": settings_of(options, TWO), "Dockerfile": DOCKERFILE, **files})
    project.task("setup-builder")
    a, b = nodes
    yield Fleet(project=project, a=a, b=b)
    if not b.runs:
        b.do("start")


def built_on(document: dict[str, object]) -> list[tuple[str, str, bool]]:
    rows = document["platforms"]
    assert isinstance(rows, list)
    return [(row["platform"], row["node"], row["native"]) for row in rows]


def test_a_node_that_is_killed_in_mid_build_is_named_with_its_platform(fleet: Fleet) -> None:
    build = Going(fleet.project, "build-multiarch", "--no-cache", "--progress=plain")
    build.until(STEP)
    fleet.b.do("kill")
    done = build.end(NOTICED)
    assert done.code == 3
    assert "error: linux/arm64: node b was lost during the build" in done.stderr
    assert "--fallback=emulate" in done.stderr
    assert not (fleet.project.folder / "dist").exists()


def test_ctrl_c_ends_what_every_node_builds(fleet: Fleet, tmp_path: Path) -> None:
    fleet.project.write({"sleep-arm64": sleeper(ARM64, 300)})
    before = census.take(None, tmp_path)
    build = Going(fleet.project, "build-multiarch", "--no-cache", "--progress=plain")
    build.until(STEP)
    build.interrupt()
    done = build.end(NOTICED)
    assert (done.code, "error: interrupted" in done.stderr) == (130, True)
    assert "went away" not in done.stderr
    assert before.differences(census.take(None, tmp_path)) == {}
    assert not (fleet.project.folder / "dist").exists()


def test_with_fallback_the_build_is_finished_by_the_others(fleet: Fleet) -> None:
    build = Going(
        fleet.project, "build-multiarch", "--no-cache", "--json", "--progress=plain", "--fallback=emulate"
    )
    build.until(STEP)
    fleet.b.do("kill")
    done = build.end(NOTICED + 30)
    assert done.code == 0, done.stderr
    assert built_on(done.document) == [(AMD64, "a", True), (ARM64, "a", False)]
    assert "node b was lost during the build" in done.stderr
    verified = fleet.project.json("verify-arch", "--platform", ",".join(TWO))
    assert verified["digest"] == done.document["digest"]
    # When it is back, a setup that asks for it takes it in again.
    fleet.b.do("start")
    told = fleet.project.task("setup-builder", "--json")
    assert "taking b into builder fleet again" in told.stderr
    assert [(row["platform"], row["node"]) for row in told.document["platforms"]] == [
        (AMD64, "a"),
        (ARM64, "b"),
    ]
    again = fleet.project.json("build-multiarch", "--no-cache")
    assert built_on(again) == [(AMD64, "a", True), (ARM64, "b", False)]


def test_a_node_that_hangs_in_mid_build_is_given_up(fleet: Fleet) -> None:
    build = Going(
        fleet.project, "build-multiarch", "--no-cache", "--json", "--progress=plain", "--fallback=emulate"
    )
    build.until(STEP)
    fleet.b.do("pause")
    try:
        done = build.end(90)
    finally:
        fleet.b.do("unpause")
    assert done.code == 0, done.stderr
    assert "takes a connection and says nothing" in done.stderr
    assert built_on(done.document) == [(AMD64, "a", True), (ARM64, "a", False)]


def test_a_node_that_is_dead_before_the_build_is_told_of_in_seconds(fleet: Fleet) -> None:
    fleet.b.do("kill")
    done = fleet.project.task("build-multiarch", expect=3)
    assert f"node b: nobody listens at {fleet.b.endpoint}" in done.stderr
    assert "--fallback=emulate" in done.stderr
    assert done.seconds < QUICK


def test_with_fallback_what_a_dead_node_would_build_is_built_elsewhere(fleet: Fleet) -> None:
    fleet.b.do("kill")
    done = fleet.project.task("build-multiarch", "--json", "--fallback=emulate")
    assert built_on(done.document) == [(AMD64, "a", True), (ARM64, "a", False)]
    assert "node b is left out, others emulate" in done.stderr
    fleet.b.do("start")
    rows = fleet.project.json("setup-builder")["platforms"]
    assert [(row["platform"], row["node"]) for row in rows] == [(AMD64, "a"), (ARM64, "b")]


def test_where_no_node_is_left_a_fallback_is_an_error(fleet: Fleet) -> None:
    fleet.a.do("kill")
    fleet.b.do("kill")
    try:
        done = fleet.project.task("build-multiarch", "--fallback=emulate", expect=3)
    finally:
        fleet.a.do("start")
    assert "node a: nobody listens" in done.stderr
    assert "node b: nobody listens" in done.stderr
    assert done.seconds < QUICK
