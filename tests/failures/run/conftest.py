from __future__ import annotations

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.project import Project


@pytest.fixture
def docker_project(engine: Engine, project: Project) -> Project:
    """A project whose images run in Docker."""
    assert engine.version
    return project.with_env(INVOKE_BUILDKIT_RUNNER="docker")
