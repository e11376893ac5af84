"""Fixtures for tests on a real engine: registries, certificates, builders and a second engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import SubprocessRunner
from tests.integration.registry_server import RegistryServer
from tests.support.engine.builders import container_builder
from tests.support.registry import real as registry
from tests.support.registry.certificates import Certificate, make_certificate


@pytest.fixture(scope="module")
def registry_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host of a plain HTTP registry."""
    with registry.serve(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["plain", "tls", "login"])
def any_registry(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate
) -> Iterator[RegistryServer]:
    """An empty registry: one with plain HTTP, then one with TLS, then one that requires a login."""
    tls, login = certificate if request.param == "tls" else None, request.param == "login"
    yield from _serve(tmp_path / "registry", tls=tls, login=login)


@pytest.fixture
def plain_registry(tmp_path: Path) -> Iterator[RegistryServer]:
    """An empty registry with plain HTTP."""
    yield from _serve(tmp_path / "registry")


@pytest.fixture
def login_registry(tmp_path: Path) -> Iterator[RegistryServer]:
    """An empty registry that requires a login."""
    yield from _serve(tmp_path / "registry", login=True)


def _serve(folder: Path, *, tls: Certificate | None = None, login: bool = False) -> Iterator[RegistryServer]:
    folder.mkdir()
    with registry.serve(folder, tls=tls, login=login) as host:
        yield RegistryServer(host=host, folder=folder, tls=tls, login=login)


@pytest.fixture(scope="module")
def builder(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """The name of a builder with the driver docker-container."""
    with container_builder(engine, buildkit_image) as name:
        yield name


@pytest.fixture(params=["docker", pytest.param("docker-container", marks=pytest.mark.interop)])
def builder_options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options for the engine's own builder, then those for one with the driver docker-container."""
    if request.param == "docker":
        return ()
    return (f"--builder={request.getfixturevalue('builder')}",)


@pytest.fixture(scope="module")
def graph_engine(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Engine]:
    """A second private engine, with the classic image store; its data is removed with it."""
    settings, run = load_settings(), SubprocessRunner(dry_run_output=sys.stderr)
    name = f"graph-{request.path.stem}"  # other modules may run at the same time
    try:
        graph = ensure_private_engine(settings, run, lambda _: None, store="graph", name=name)
    except EngineError as error:
        if engine.kind == "private":
            raise
        pytest.skip(f"no private engine beside this one: {error}")
    yield graph
    stop_private_engine(settings, run, lambda _: None, name=name)
    paths = PrivateEnginePaths(cache_folder(settings), name)
    assert not paths.root.exists()
    assert not paths.runtime_dir.exists()
