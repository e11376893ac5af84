"""Caches outside the builder, by real BuildKits: the engine's own, and others that start with nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.builders import container_builder, steps
from tests.support.project import Project, program
from tests.support.registry import actions_cache
from tests.support.registry.actions_cache import ActionsCache

AMD64, ARM64 = TWO = ("linux/amd64", "linux/arm64")
# What it runs is an emulated program: a step that is worth a cache, without a base.
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY once-$TARGETARCH /once
COPY hello-$TARGETARCH /hello
RUN ["/hello"]
CMD ["/hello"]
"""
CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"


@pytest.fixture
def tiny(engine: Engine, project: Project) -> Project:
    """An image of two platforms of which no builder has seen anything yet."""
    assert engine.version
    project.write({"Dockerfile": DOCKERFILE})
    for name in TWO:
        architecture = name.rpartition("/")[2]
        project.write({f"hello-{architecture}": program(name), f"once-{architecture}": uuid.uuid4().hex})
    return project.with_env(INVOKE_BUILDKIT_PLATFORMS=",".join(TWO))


@pytest.fixture(scope="module")
def first(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """The builder on which something is built first."""
    with container_builder(engine, buildkit_image) as name:
        yield name


@pytest.fixture
def elsewhere(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """A builder that has never built anything."""
    with container_builder(engine, buildkit_image) as name:
        yield name


@pytest.fixture(scope="module")
def two_nodes(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """A builder of which each node builds one of the platforms."""
    with container_builder(engine, buildkit_image, nodes=TWO) as name:
        yield name


@pytest.fixture(params=["docker", "docker-container"])
def builders(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options that choose the engine's own builder, then one of another driver."""
    if request.param == "docker":
        return ()
    return (f"--builder={request.getfixturevalue('first')}",)


@pytest.fixture
def actions() -> Iterator[ActionsCache]:
    """GitHub's cache service, empty."""
    with actions_cache.serve() as cache:
        yield cache


def build(project: Project, *options: str, output: str = "type=oci,dest=out.tar") -> str:
    """Build both platforms or what the options say; gives the progress."""
    return project.task("build-multiarch", "--progress=plain", "-o", output, *options).stderr


def all_cached(progress: str, count: int) -> bool:
    found = steps(progress)
    assert len(found) == count, progress
    assert all(found.values()), progress
    return True


def layers(folder: Path) -> list[str]:
    """The layers of the cache that is in a folder."""
    (entry,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    manifest = json.loads((folder / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
    assert manifest["config"]["mediaType"] == CACHE_CONFIG
    return [layer["digest"] for layer in manifest["layers"]]


def test_platform_caches_are_separate(tiny: Project, builders: tuple[str, ...]) -> None:
    for platform in TWO:
        build(tiny, *builders, "--platform", platform, "--cache-to=type=local,dest=cache,mode=max")
    assert sorted(path.name for path in (tiny.folder / "cache").iterdir()) == ["linux-amd64", "linux-arm64"]
    amd64, arm64 = (layers(tiny.folder / "cache" / name) for name in ("linux-amd64", "linux-arm64"))
    assert set(amd64) != set(arm64)


def test_shared_layers_are_exported_once(tiny: Project, builders: tuple[str, ...]) -> None:
    build(tiny, *builders, "--cache-to=type=local,dest=cache,mode=max")
    for platform in TWO:
        build(tiny, *builders, "--platform", platform, "--cache-to=type=local,dest=cache,mode=max")
    both = set(layers(tiny.folder / "cache"))
    apart = [set(layers(tiny.folder / "cache" / name)) for name in ("linux-amd64", "linux-arm64")]
    assert set.union(*apart) <= both


def test_first_build_with_empty_cache(tiny: Project, builders: tuple[str, ...], registry_host: str) -> None:
    caches = ("type=local,src=nowhere", f"{registry_host}/nothing:here")
    progress = build(tiny, *builders, *(f"--cache-from={cache}" for cache in caches))
    assert not any(steps(progress).values())


Caches = Callable[[str], tuple[str, str]]


def _local(_: str) -> tuple[str, str]:
    return "type=local,dest=cache,mode=max", "type=local,src=cache"


def _registry(host: str) -> tuple[str, str]:
    ref = f"{host}/team/cache:{uuid.uuid4().hex}"
    return f"type=registry,ref={ref},mode=max", ref


@pytest.mark.parametrize("caches", [_local, _registry])
def test_other_builder_imports_cache(
    tiny: Project, first: str, elsewhere: str, registry_host: str, caches: Caches
) -> None:
    cache_to, cache_from = caches(registry_host)
    build(tiny, f"--builder={first}", f"--cache-to={cache_to}")
    progress = build(tiny, f"--builder={elsewhere}", f"--cache-from={cache_from}")
    assert all_cached(progress, 6)
    assert "not found" not in progress


@pytest.mark.parametrize("caches", [_local, _registry])
def test_other_builder_imports_job_caches(
    tiny: Project, first: str, elsewhere: str, registry_host: str, caches: Caches
) -> None:
    cache_to, cache_from = caches(registry_host)
    for platform in TWO:
        build(tiny, f"--builder={first}", "--platform", platform, f"--cache-to={cache_to}")
    progress = build(tiny, f"--builder={elsewhere}", "--platform", ARM64, f"--cache-from={cache_from}")
    assert all_cached(progress, 3)
    assert all_cached(build(tiny, f"--builder={elsewhere}", f"--cache-from={cache_from}"), 6)


def test_inline_cache(tiny: Project, first: str, elsewhere: str, registry_host: str) -> None:
    name = f"{registry_host}/team/inline:{uuid.uuid4().hex}"
    build(tiny, f"--builder={first}", "--cache-to=type=inline", "-t", name, output="type=registry")
    assert all_cached(build(tiny, f"--builder={elsewhere}", f"--cache-from={name}"), 6)


def test_other_builder_imports_gha_cache(
    tiny: Project, builders: tuple[str, ...], elsewhere: str, actions: ActionsCache
) -> None:
    step = tiny.with_env(**actions.env)
    progress = build(step, *builders, "--cache-to=type=gha,scope=web,mode=max")
    assert actions.scopes == {"web"}
    assert actions.authorizations == {f"Bearer {actions.token}"}
    assert actions.token not in progress
    assert all_cached(build(step, f"--builder={elsewhere}", "--cache-from=type=gha,scope=web"), 6)


def test_gha_scopes_per_job(
    tiny: Project, builders: tuple[str, ...], elsewhere: str, actions: ActionsCache
) -> None:
    step = tiny.with_env(**actions.env)
    for platform in TWO:
        build(step, *builders, "--platform", platform, "--cache-to=type=gha,mode=max")
    assert actions.scopes == {"buildkit-linux-amd64", "buildkit-linux-arm64"}
    assert all_cached(build(step, f"--builder={elsewhere}", "--cache-from=type=gha"), 6)


@pytest.mark.parametrize("missing", ["ACTIONS_RUNTIME_TOKEN", "ACTIONS_RESULTS_URL"])
def test_skipped_gha_cache_is_reported(
    tiny: Project, builders: tuple[str, ...], actions: ActionsCache, missing: str
) -> None:
    step = tiny.with_env(**{**actions.env, missing: ""})
    progress = build(step, *builders, "--cache-to=type=gha", "--cache-from=type=gha")
    assert (actions.entries, actions.authorizations) == ([], set())
    assert f"cache type=gha: {missing} is not set, so buildx skips it" in progress


def test_engine_cache_serves_other_builder(tiny: Project, elsewhere: str, registry_host: str) -> None:
    cache_to, cache_from = _registry(registry_host)
    build(tiny, f"--cache-to={cache_to}")
    assert all_cached(build(tiny, f"--builder={elsewhere}", f"--cache-from={cache_from}"), 6)


def test_no_cache_on_other_builder(tiny: Project, first: str, elsewhere: str) -> None:
    build(tiny, f"--builder={first}")
    assert not any(steps(build(tiny, f"--builder={elsewhere}")).values())


@pytest.mark.parametrize("caches", [_local, _registry])
def test_node_caches_are_separate(
    tiny: Project, two_nodes: str, elsewhere: str, registry_host: str, caches: Caches
) -> None:
    cache_to, cache_from = caches(registry_host)
    name = f"{registry_host}/team/two:1"
    build(tiny, f"--builder={two_nodes}", f"--cache-to={cache_to}", "-t", name, output="type=registry")
    assert all_cached(build(tiny, f"--builder={elsewhere}", f"--cache-from={cache_from}"), 6)


def test_unsupported_cache_type(
    tiny: Project,
) -> None:
    refused = tiny.json("build-multiarch", "--cache-to=type=s3,region=x,bucket=y", expect=2)
    assert "supports only inline, local, registry, gha" in refused["error"]
    assert not (tiny.folder / "dist").exists()
