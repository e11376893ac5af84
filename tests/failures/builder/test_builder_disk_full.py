from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

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


@contextmanager
def kept_full(file: Path) -> Iterator[None]:
    """Take all space of a file system, also what BuildKit's collector frees in between."""
    done = Event()

    def fill() -> None:
        with file.open("ab", buffering=0) as written:
            while not done.wait(0.001):
                with suppress(OSError):
                    while written.write(bytes(4096)):
                        pass

    thread = Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        file.unlink()


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
    with kept_full(other_file):
        # It records what it removes.
        assert "no space left on device" in here.command(*prune).stderr
    pruned = here.command(*prune)
    assert pruned.code == 0, pruned.stderr
    assert here.write({"big": b"small"}).json("build-multiarch")["ok"]
