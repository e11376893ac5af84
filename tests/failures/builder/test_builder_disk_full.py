from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import Node, docker, host_node, remote_settings
from tests.support.project import Project

MEGABYTES = 56
# There is space for the context and one copy of it; the second copy fails and is rolled back.
DOCKERFILE = "FROM scratch\nCOPY big /big\nCOPY big /bigger\n"


@pytest.fixture
def small_node(engine: Engine, buildkit_image: str) -> Iterator[Node]:
    """A node with little space for its state."""
    state = f"--tmpfs=/var/lib/buildkit:size={MEGABYTES}m"
    with host_node(engine, buildkit_image, "cramped", options=(state,)) as node:
        yield node


def state_folder(node: Node) -> Path:
    """Return the directory of a node's state, seen from the host."""
    pid = docker(node.engine, "inspect", "--format={{.State.Pid}}", node.container)
    return Path(f"/proc/{pid}/root/var/lib/buildkit")


def test_builder_disk_full(small_node: Node, project: Project) -> None:
    here = project.with_env(BUILDX_CONFIG=str(project.folder.parent / "buildx"))
    settings = remote_settings([small_node.option()], ["linux/amd64"])
    here.write({"pyproject.toml": settings, "Dockerfile": DOCKERFILE})
    here.write({"big": os.urandom((MEGABYTES // 3 + 1) << 20)})
    other_file = state_folder(small_node) / "other"
    other_file.write_bytes(bytes(1 << 20))
    done = here.task("build-multiarch", expect=5)
    assert "the disk is full" in done.stderr
    assert " prune --builder=fleet (which needs some space itself)" in done.stderr
    assert list((here.folder / "dist").glob("*")) == []

    prune = [*small_node.engine.tools.buildx, "prune", "--builder=fleet", "--force", "--all"]
    other_file.unlink()  # prune records what it removes
    pruned = here.command(*prune)
    assert pruned.code == 0, pruned.stderr
    assert here.write({"big": b"small"}).json("build-multiarch")["ok"]
