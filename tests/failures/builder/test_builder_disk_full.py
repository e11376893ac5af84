from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import Node, docker, host_node, settings_of
from tests.support.project import Project

MEGABYTES = 56
# The context and one copy of it fit in; the second copy does not, and is rolled back.
DOCKERFILE = "FROM scratch\nCOPY big /big\nCOPY big /bigger\n"


@pytest.fixture
def cramped(engine: Engine, buildkit_image: str) -> Iterator[Node]:
    """A node with very little room for what it builds."""
    state = f"--tmpfs=/var/lib/buildkit:size={MEGABYTES}m"
    with host_node(engine, buildkit_image, "cramped", options=(state,)) as node:
        yield node


def state(node: Node) -> Path:
    """The folder of its BuildKit's state, as this machine sees it."""
    pid = docker(node.engine, "inspect", "--format={{.State.Pid}}", node.container)
    return Path(f"/proc/{pid}/root/var/lib/buildkit")


def test_the_command_that_makes_room_is_told(cramped: Node, project: Project) -> None:
    here = project.with_env(BUILDX_CONFIG=str(project.folder.parent / "buildx"))
    here.write({"pyproject.toml": settings_of([cramped.option()], ["linux/amd64"]), "Dockerfile": DOCKERFILE})
    here.write({"big": os.urandom((MEGABYTES // 3 + 1) << 20)})
    others = state(cramped) / "others"
    others.write_bytes(bytes(1 << 20))
    done = here.task("build-multiarch", expect=5)
    assert "the disk is full" in done.stderr
    assert "docker buildx prune --builder=fleet (which needs some space itself)" in done.stderr
    assert list((here.folder / "dist").glob("*")) == []

    prune = [*cramped.engine.tools.buildx, "prune", "--builder=fleet", "--force", "--all"]
    assert "no space left on device" in here.command(*prune).stderr  # it notes what it removes
    others.unlink()
    pruned = here.command(*prune)
    assert pruned.code == 0, pruned.stderr
    assert here.write({"big": b"small"}).json("build-multiarch")["ok"]
