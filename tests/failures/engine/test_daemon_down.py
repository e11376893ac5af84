from __future__ import annotations

import pytest

from tests.conftest import Unchanged
from tests.support.project import Project


@pytest.mark.parametrize("task", ["setup-builder", "build-multiarch", "arch-matrix"])
def test_a_daemon_that_is_down_is_named_with_the_next_command(
    project: Project, unchanged: Unchanged, task: str
) -> None:
    project.write({"Dockerfile": "FROM scratch\n"})
    dead = project.with_env(DOCKER_HOST=f"unix://{project.folder}/dead.sock")
    with unchanged():
        done = dead.task(task, "--engine=system", expect=3)
    said = done.stdout + done.stderr  # arch-matrix says it in its report
    assert f"no Docker daemon answers at unix://{project.folder}/dead.sock" in said
    assert "try: " in said
    assert "--engine=auto" in said


def test_a_daemon_that_refuses_tcp_connections_is_named(project: Project, unchanged: Unchanged) -> None:
    dead = project.with_env(DOCKER_HOST="tcp://127.0.0.1:1")
    with unchanged():
        done = dead.task("setup-builder", "--engine=system", expect=3)
    assert "tcp://127.0.0.1:1 does not answer" in done.stderr


def test_doctor_says_so_and_changes_nothing(project: Project, unchanged: Unchanged) -> None:
    dead = project.with_env(DOCKER_HOST=f"unix://{project.folder}/dead.sock")
    with unchanged():
        found = dead.json("doctor", "--engine=system", "--platform=linux/amd64", expect=3)
    assert found["findings"][0]["name"] == "engine"
    assert not found["findings"][0]["ok"]
    assert found["next"] == "inv setup-builder"
