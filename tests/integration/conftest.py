"""What tests on the real engine share: a registry, and both kinds of builders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.builders import container_builder
from tests.support.registry import real as registry


@pytest.fixture(scope="module")
def registry_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.serve(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def container(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """The name of a builder of the driver docker-container."""
    with container_builder(engine, buildkit_image) as name:
        yield name


@pytest.fixture(params=["docker", "docker-container"])
def builders(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options that choose the engine's own builder, then one of another driver."""
    if request.param == "docker":
        return ()
    return (f"--builder={request.getfixturevalue('container')}",)
