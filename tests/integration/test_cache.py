"""External build caches, with real BuildKits: the engine's own, and new builders with empty caches."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.integration.hello_image import TWO, hello_programs
from tests.support.engine.builders import container_builder, steps
from tests.support.project import Project
from tests.support.registry import actions_cache
from tests.support.registry.actions_cache import ActionsCache

AMD64, ARM64 = TWO
# Three steps for each platform, one of which runs a program that may be emulated.
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
def project(engine: Engine, project: Project) -> Project:
    """An image of two platforms whose layers differ from those of every other test."""
    assert engine.version
    unique = {f"once-{name.rpartition('/')[2]}": uuid.uuid4().hex for name in TWO}
    return project.write({"Dockerfile": DOCKERFILE, **hello_programs(), **unique}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO)
    )


@pytest.fixture
def other_builder(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """The name of a builder with an empty cache."""
    with container_builder(engine, buildkit_image) as name:
        yield name


@pytest.fixture(scope="module")
def two_node_builder(engine: Engine, buildkit_image: str) -> Iterator[str]:
    """The name of a builder with a node for each platform."""
    with container_builder(engine, buildkit_image, nodes=TWO) as name:
        yield name


@pytest.fixture
def gha_cache() -> Iterator[ActionsCache]:
    """An empty cache service of GitHub Actions."""
    with actions_cache.serve() as cache:
        yield cache


def build(project: Project, *options: str, output: str = "type=oci,dest=out.tar") -> str:
    """Build both platforms, unless an option names others, and return the progress."""
    return project.task("build-multiarch", "--progress=plain", "-o", output, *options).stderr


def assert_all_cached(progress: str, count: int) -> None:
    cached = steps(progress)
    assert len(cached) == count, progress
    assert all(cached.values()), progress


def cache_layers(folder: Path) -> list[str]:
    """Return the digests of the layers of a local cache."""
    (entry,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    manifest = json.loads((folder / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
    assert manifest["config"]["mediaType"] == CACHE_CONFIG
    return [layer["digest"] for layer in manifest["layers"]]


def test_platform_caches_are_separate(project: Project, builder_options: tuple[str, ...]) -> None:
    for platform in TWO:
        build(project, *builder_options, "--platform", platform, "--cache-to=type=local,dest=cache,mode=max")
    assert sorted(path.name for path in (project.folder / "cache").iterdir()) == [
        "linux-amd64",
        "linux-arm64",
    ]
    amd64, arm64 = (cache_layers(project.folder / "cache" / name) for name in ("linux-amd64", "linux-arm64"))
    assert set(amd64) != set(arm64)


def test_shared_layers_are_exported_once(project: Project, builder_options: tuple[str, ...]) -> None:
    build(project, *builder_options, "--cache-to=type=local,dest=cache,mode=max")
    for platform in TWO:
        build(project, *builder_options, "--platform", platform, "--cache-to=type=local,dest=cache,mode=max")
    shared = set(cache_layers(project.folder / "cache"))
    separate = [set(cache_layers(project.folder / "cache" / name)) for name in ("linux-amd64", "linux-arm64")]
    assert set.union(*separate) <= shared


def test_first_build_with_empty_cache(
    project: Project, builder_options: tuple[str, ...], registry_host: str
) -> None:
    caches = ("type=local,src=missing", f"{registry_host}/missing:1")
    progress = build(project, *builder_options, *(f"--cache-from={cache}" for cache in caches))
    assert not any(steps(progress).values())


# From a registry's host to the values of --cache-to and --cache-from.
CacheOptions = Callable[[str], tuple[str, str]]


def local_cache(_: str) -> tuple[str, str]:
    return "type=local,dest=cache,mode=max", "type=local,src=cache"


def registry_cache(host: str) -> tuple[str, str]:
    ref = f"{host}/team/cache:{uuid.uuid4().hex}"
    return f"type=registry,ref={ref},mode=max", ref


@pytest.mark.parametrize("caches", [local_cache, registry_cache])
def test_cache_on_other_builder(
    project: Project, builder: str, other_builder: str, registry_host: str, caches: CacheOptions
) -> None:
    cache_to, cache_from = caches(registry_host)
    build(project, f"--builder={builder}", f"--cache-to={cache_to}")
    progress = build(project, f"--builder={other_builder}", f"--cache-from={cache_from}")
    assert_all_cached(progress, 6)
    assert "not found" not in progress


@pytest.mark.parametrize("caches", [local_cache, registry_cache])
def test_job_caches_on_other_builder(
    project: Project, builder: str, other_builder: str, registry_host: str, caches: CacheOptions
) -> None:
    cache_to, cache_from = caches(registry_host)
    for platform in TWO:
        build(project, f"--builder={builder}", "--platform", platform, f"--cache-to={cache_to}")
    progress = build(project, f"--builder={other_builder}", "--platform", ARM64, f"--cache-from={cache_from}")
    assert_all_cached(progress, 3)
    assert_all_cached(build(project, f"--builder={other_builder}", f"--cache-from={cache_from}"), 6)


def test_inline_cache(project: Project, builder: str, other_builder: str, registry_host: str) -> None:
    name = f"{registry_host}/team/inline:{uuid.uuid4().hex}"
    build(project, f"--builder={builder}", "--cache-to=type=inline", "-t", name, output="type=registry")
    assert_all_cached(build(project, f"--builder={other_builder}", f"--cache-from={name}"), 6)


def test_gha_cache_on_other_builder(
    project: Project, builder_options: tuple[str, ...], other_builder: str, gha_cache: ActionsCache
) -> None:
    step = project.with_env(**gha_cache.env)
    progress = build(step, *builder_options, "--cache-to=type=gha,scope=web,mode=max")
    assert gha_cache.scopes == {"web"}
    assert gha_cache.authorizations == {f"Bearer {gha_cache.token}"}
    assert gha_cache.token not in progress
    assert_all_cached(build(step, f"--builder={other_builder}", "--cache-from=type=gha,scope=web"), 6)


def test_gha_scopes_per_job(
    project: Project, builder_options: tuple[str, ...], other_builder: str, gha_cache: ActionsCache
) -> None:
    step = project.with_env(**gha_cache.env)
    for platform in TWO:
        build(step, *builder_options, "--platform", platform, "--cache-to=type=gha,mode=max")
    assert gha_cache.scopes == {"buildkit-linux-amd64", "buildkit-linux-arm64"}
    assert_all_cached(build(step, f"--builder={other_builder}", "--cache-from=type=gha"), 6)


@pytest.mark.parametrize("missing", ["ACTIONS_RUNTIME_TOKEN", "ACTIONS_RESULTS_URL"])
def test_skipped_gha_cache_is_reported(
    project: Project, builder_options: tuple[str, ...], gha_cache: ActionsCache, missing: str
) -> None:
    step = project.with_env(**{**gha_cache.env, missing: ""})
    progress = build(step, *builder_options, "--cache-to=type=gha", "--cache-from=type=gha")
    assert (gha_cache.entries, gha_cache.authorizations) == ([], set())
    assert f"cache type=gha: {missing} is not set, so buildx skips it" in progress


def test_engine_cache_on_other_builder(project: Project, other_builder: str, registry_host: str) -> None:
    cache_to, cache_from = registry_cache(registry_host)
    build(project, f"--cache-to={cache_to}")
    assert_all_cached(build(project, f"--builder={other_builder}", f"--cache-from={cache_from}"), 6)


def test_no_cache_on_other_builder(project: Project, builder: str, other_builder: str) -> None:
    build(project, f"--builder={builder}")
    assert not any(steps(build(project, f"--builder={other_builder}")).values())


@pytest.mark.parametrize("caches", [local_cache, registry_cache])
def test_node_caches_are_separate(
    project: Project, two_node_builder: str, other_builder: str, registry_host: str, caches: CacheOptions
) -> None:
    cache_to, cache_from = caches(registry_host)
    name = f"{registry_host}/team/two:1"
    build(
        project, f"--builder={two_node_builder}", f"--cache-to={cache_to}", "-t", name, output="type=registry"
    )
    assert_all_cached(build(project, f"--builder={other_builder}", f"--cache-from={cache_from}"), 6)


def test_unsupported_cache_type(project: Project) -> None:
    refused = project.json("build-multiarch", "--cache-to=type=s3,region=x,bucket=y", expect=2)
    assert "supports only inline, local, registry, gha" in refused["error"]
    assert not (project.folder / "dist").exists()
