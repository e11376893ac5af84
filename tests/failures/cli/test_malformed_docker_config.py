from __future__ import annotations

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.project import Project

MALFORMED = b'{"auths": {"registry.example.org": {"auth": "'


@pytest.mark.parametrize("task", ["setup-builder", "build-multiarch", "doctor"])
def test_malformed_config_is_not_rewritten(engine: Engine, project: Project, task: str) -> None:
    folder = project.folder.parent / "docker"
    folder.mkdir()
    (folder / "config.json").write_bytes(MALFORMED)
    project.write({"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    configured = project.with_env(DOCKER_CONFIG=str(folder), DOCKER_HOST=engine.endpoint)
    done = configured.task(task, "--platform=linux/amd64", expect=2)
    assert str(folder / "config.json") in done.stdout + done.stderr
    assert (folder / "config.json").read_bytes() == MALFORMED
