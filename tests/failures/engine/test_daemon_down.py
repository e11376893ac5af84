from __future__ import annotations

import pytest

from tests.conftest import Unchanged
from tests.support.project import Project


@pytest.mark.parametrize("task", ["setup-builder", "build-multiarch", "arch-matrix"])
def test_daemon_down(project: Project, unchanged: Unchanged, task: str) -> None:
    project.write({"Dockerfile": "FROM scratch\n"})
    dead = project.with_env(DOCKER_HOST=f"unix://{project.folder}/dead.sock")
    with unchanged():
        done = dead.task(task, "--engine=system", expect=3)
    output = done.stdout + done.stderr  # arch-matrix has it in its report
    assert f"no Docker daemon answers at unix://{project.folder}/dead.sock" in output
    assert "try: " in output
    assert "--engine=auto" in output


def test_tcp_daemon_down(project: Project, unchanged: Unchanged) -> None:
    dead = project.with_env(DOCKER_HOST="tcp://127.0.0.1:1")
    with unchanged():
        done = dead.task("setup-builder", "--engine=system", expect=3)
    assert "no Docker daemon answers at tcp://127.0.0.1:1" in done.stderr


def test_doctor_with_daemon_down(project: Project, unchanged: Unchanged) -> None:
    dead = project.with_env(DOCKER_HOST=f"unix://{project.folder}/dead.sock")
    with unchanged():
        report = dead.json("doctor", "--engine=system", "--platform=linux/amd64", expect=3)
    assert report["findings"][0]["name"] == "engine"
    assert not report["findings"][0]["ok"]
    assert report["next"].endswith("setup-builder --engine=auto")
