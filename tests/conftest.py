"""Fixtures of the tests with a real engine: the engine as the tasks find or start it, and repositories."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from buildkit_tasks import hints
from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.builder.native_platforms import NativePlatformStore
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.system.files import build_atomically
from buildkit_tasks.testing.skip import skip_without_engine
from tests.support import census
from tests.support.engine import buildkit
from tests.support.project import Project, repository

pytest_plugins = ["pytester", "tests.support.isolation", "tests.support.progress", "tests.support.scheduling"]

# How long an example takes depends on what else the machine does.
settings.register_profile(
    "busy", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")
settings.register_profile("quick", max_examples=25)

ROOT = Path(__file__).parent.parent
TEN = (
    "linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/386",
    "linux/ppc64le", "linux/s390x", "linux/riscv64", "linux/mips64le", "linux/loong64",
)  # fmt: skip


@pytest.fixture(autouse=True)
def forget_typed_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hints of one test not name the programs that another test started."""
    monkeypatch.setattr(hints, "_typed_programs", [])
    monkeypatch.setattr(hints, "_docker_clients", [])


@pytest.fixture(scope="session")
def engine(
    request: pytest.FixtureRequest, buildkit_pipeline: Pipeline, handlers_lock: HandlersLock
) -> Iterator[Engine]:
    """The engine that the tasks find or start, with a builder for the ten platforms."""
    pipeline, name = buildkit_pipeline, buildkit_pipeline.settings.name
    with skip_without_engine(request.config):
        builder = pipeline.builders.find(name)
    with handlers_lock(exclusive=True):
        assert [platform.message for platform in pipeline.setup().platforms if not platform.runs] == []
    yield pipeline.engine
    if builder is None:
        pipeline.builders.remove(name)


@pytest.fixture(scope="session")
def buildkit_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an image of BuildKit in the engine, for the driver docker-container and for nodes."""
    try:
        name = buildkit.import_image(engine, f"{buildkit.IMAGE}-{uuid.uuid4().hex[:8]}")
    except buildkit.ToolUnavailable as error:
        pytest.skip(str(error))
    yield name
    buildkit.remove_image(engine, name)
    # The native platforms that were stored for nodes in this session's own stores of buildx.
    for store in tmp_path_factory.getbasetemp().rglob("instances"):
        shutil.rmtree(
            NativePlatformStore.for_store(store, cache_folder(load_settings())).folder, ignore_errors=True
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty repository whose settings need no registry, and a directory for temporary files."""
    (tmp_path / "repo").mkdir()
    return repository(tmp_path)


@pytest.fixture(scope="session")
def hello_archive(engine: Engine, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of the example hello for ten platforms, which one worker builds for all: Go takes long."""
    assert engine.version
    cache = (cache_folder(load_settings()) / "hello").resolve()

    def build(directory: Path) -> None:
        folder = tmp_path_factory.mktemp("hello-build")
        (folder / "repo").mkdir()
        repository(folder).task(
            "build-multiarch",
            f"--context={ROOT / 'examples/hello'}",
            f"--platform={','.join(TEN)}",
            f"--output=type=oci,dest={directory / 'image.tar'}",
            "--provenance=false",
            # A later session compiles again only if something has changed.
            f"--cache-from=type=local,src={cache}",
            f"--cache-to=type=local,dest={cache}",
            timeout=1100,
        )

    shared_directory.mkdir(exist_ok=True)
    return build_atomically(shared_directory / "hello", build) / "image.tar"


@pytest.fixture(scope="session")
def hello(hello_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with the example hello, for ten platforms."""
    assert hello_archive.exists()
    folder = tmp_path_factory.mktemp("hello")
    shutil.copytree(ROOT / "examples/hello", folder / "repo")
    settings = [
        "[tool.buildkit-tasks]",
        'tags = ["hello:latest"]',
        r"expect = '\[{goarch}\]'",
        f"platforms = {list(TEN)}",
    ]
    return repository(folder).write({"pyproject.toml": "\n".join(settings)})


HandlersLock = Callable[..., AbstractContextManager[None]]
Unchanged = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def unchanged(request: pytest.FixtureRequest, tmp_path: Path, handlers_lock: HandlersLock) -> Unchanged:
    """Return a context manager that checks for leftovers, also in the engine if the test has one."""
    engine = request.getfixturevalue("engine") if "engine" in request.fixturenames else None

    @contextlib.contextmanager
    def compare() -> Iterator[None]:
        with handlers_lock():
            before = census.take(engine, tmp_path)
            yield
            assert before.differences(census.take(engine, tmp_path)) == {}

    return compare
