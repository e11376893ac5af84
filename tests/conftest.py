"""What the tests on real parts share: an engine got as the product gets it, and users' repositories."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.builder.native_platforms import NativePlatformStore
from buildkit_tasks.host.engine import Engine, find_engine
from buildkit_tasks.host.engine.private import PrivateEnginePaths, stop_private_engine
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.testing.skip import skip_without_engine
from tests.support import census
from tests.support.engine import buildkit
from tests.support.project import Project, repository

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
TEN = (
    "linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/386",
    "linux/ppc64le", "linux/s390x", "linux/riscv64", "linux/mips64le", "linux/loong64",
)  # fmt: skip


def _tell(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it with a failing test


@pytest.fixture(scope="session")
def _handlers_as_before() -> Iterator[None]:
    """The binfmt_misc table is left byte for byte as it was found, and unmounted if it was not mounted."""
    ledger = cache_folder(load_settings()) / "binfmt.json"
    noted = ledger.read_bytes() if ledger.exists() else None
    mounted = (census.BINFMT / "register").exists()
    before = census.handlers()
    yield
    known = {name for name, _ in before}
    ours = json.loads(ledger.read_bytes()) if ledger.exists() else {}
    for name, text in census.handlers():
        # Others on this machine may have added some meanwhile: those are theirs to remove.
        if name not in known and ours.get(name) == text.decode():
            (census.BINFMT / name).write_bytes(b"-1")
    if noted is None:
        ledger.unlink(missing_ok=True)
    else:
        ledger.write_bytes(noted)
    assert census.handlers() == before
    if not mounted and (census.BINFMT / "register").exists():
        SubprocessRunner().unmount(census.BINFMT)


@pytest.fixture(scope="session")
def _engine_as_before() -> Iterator[None]:
    """A private engine that was not there before is ended; what it kept goes unless it was there."""
    settings, run = load_settings(), SubprocessRunner(dry_run_output=sys.stderr)
    found = find_engine(settings, run)
    kept = PrivateEnginePaths(cache_folder(settings)).root.exists()
    yield
    if not isinstance(found, Engine):
        stop_private_engine(settings, run, _tell, keep_state=kept)


@pytest.fixture(scope="session")
def engine(
    request: pytest.FixtureRequest,
    _handlers_as_before: None,
    _engine_as_before: None,
    buildkit_pipeline: Pipeline,
) -> Iterator[Engine]:
    """The engine that the product finds or starts, set up for the ten platforms as the product does it."""
    pipeline, name = buildkit_pipeline, buildkit_pipeline.settings.name
    with skip_without_engine(request.config):
        found = pipeline.builders.find(name)
    assert [row.message for row in pipeline.setup().platforms if not row.runs] == []
    yield pipeline.engine
    if found is None:
        pipeline.builders.remove(name)


@pytest.fixture(scope="session")
def buildkit_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real BuildKit in the engine's store, for builders of the driver docker-container and for nodes."""
    try:
        name = buildkit.import_image(engine, f"{buildkit.IMAGE}-{uuid.uuid4().hex[:8]}")
    except buildkit.ToolUnavailable as missing:
        pytest.skip(str(missing))
    yield name
    buildkit.remove_image(engine, name)
    # What was noted of nodes in this session's own stores of buildx.
    for store in tmp_path_factory.getbasetemp().rglob("instances"):
        shutil.rmtree(
            NativePlatformStore.for_store(store, cache_folder(load_settings())).folder, ignore_errors=True
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty repository whose settings ask for no registry, and a folder for temporary files."""
    (tmp_path / "repo").mkdir()
    return repository(tmp_path)


@pytest.fixture(scope="session")
def hello(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """This repository's example in a repository of its own, for ten platforms."""
    assert engine.version
    folder = tmp_path_factory.mktemp("hello")
    shutil.copytree(ROOT / "examples/hello", folder / "repo")
    table = [
        "[tool.buildkit-tasks]",
        'tags = ["hello:latest"]',
        r"expect = '\[{goarch}\]'",
        f"platforms = {list(TEN)}",
    ]
    return repository(folder).write({"pyproject.toml": "\n".join(table)})


Unchanged = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def unchanged(request: pytest.FixtureRequest, tmp_path: Path) -> Unchanged:
    """``with unchanged():`` nothing of ours is left behind; with the engine's things where there is one."""
    engine = request.getfixturevalue("engine") if "engine" in request.fixturenames else None

    @contextlib.contextmanager
    def compare() -> Iterator[None]:
        before = census.take(engine, tmp_path)
        yield
        assert before.differences(census.take(engine, tmp_path)) == {}

    return compare
