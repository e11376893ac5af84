"""Caches, timestamps and attestations of an executed build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.errors import BuildFailed, UsageError
from buildkit_tasks.report.model import NodeSummary
from tests.support.argv import option_values
from tests.support.fake_engine import make_engine
from tests.support.oci import hello
from tests.support.registry.fake import fake_registry
from tests.unit.build.test_execute import TWO_PLATFORMS, Harness

NODE = NodeSummary(name="a", endpoint="tcp://10.0.0.1:1", platforms=tuple(map(str, TWO_PLATFORMS)))
REGISTRY_CACHE = "type=registry,ref=x:c"


@pytest.fixture(autouse=True)
def _work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACTIONS_RUNTIME_TOKEN", raising=False)


def option_per_build(harness: Harness, name: str) -> list[list[str]]:
    """Return the values of an option for each run of buildx."""
    return [option_values(command.argv, name) for command in harness.commands.calls]


def test_cache_export_to_base() -> None:
    harness = Harness("type=oci,dest=a.tar", cache_to=("x:c",)).expect_success()
    harness.execute()
    assert option_per_build(harness, "cache-to") == [[REGISTRY_CACHE]]


def test_cache_scope_of_one_platform() -> None:
    with fake_registry() as server:
        existing_cache = f"type=registry,ref={server.add_image(hello(), 'team/cache', 'c-linux-arm-v7')}"
        harness = Harness(
            "type=oci,dest=a.tar",
            platforms=TWO_PLATFORMS[1:],
            cache_to=("x:c",),
            cache_from=(f"{server.host}/team/cache:c",),
        ).expect_success()
        harness.execute()
    assert option_per_build(harness, "cache-to") == [[f"{REGISTRY_CACHE}-linux-arm-v7"]]
    assert option_per_build(harness, "cache-from") == [[existing_cache]]


def test_dry_run_queries_no_registry() -> None:
    with fake_registry() as server:
        harness = Harness("type=oci,dest=a.tar", cache_from=(f"{server.host}/team/cache:c",))
        harness.commands.dry_run = True
        harness.execute()
        assert server.received == []
    assert [line.count("cache-from") for line in harness.commands.dry_run_lines] == [3]


@pytest.mark.parametrize("driver", ["remote", "kubernetes"])
def test_remote_queries_no_registry(driver: str) -> None:
    with fake_registry() as server:
        harness = Harness("type=oci,dest=a.tar", driver=driver, cache_from=(f"{server.host}/team/cache:c",))
        harness.build = replace(harness.build, builder=replace(harness.build.builder, nodes=(NODE,)))
        harness.expect_success().execute()
        assert server.received == []
    assert [len(values) for values in option_per_build(harness, "cache-from")] == [3]


def test_skipped_cache_warning() -> None:
    harness = Harness("type=oci,dest=a.tar", cache_to=("type=gha",)).expect_success()
    harness.execute()
    assert "ACTIONS_RUNTIME_TOKEN is not set" in harness.messages[0]


@pytest.mark.parametrize("platforms", [TWO_PLATFORMS, TWO_PLATFORMS[:1]])
def test_unsupported_cache_export(platforms: object) -> None:
    with pytest.raises(UsageError, match="graph store"):
        Harness(
            "type=local,dest=x", store="graph", cache_to=("x:c",), platforms=platforms
        ).check_capabilities()
    with pytest.raises(UsageError, match="own builder supports"):
        Harness("type=local,dest=x", cache_to=("type=s3,bucket=b",), platforms=platforms).check_capabilities()


def test_unsupported_rewrite() -> None:
    with pytest.raises(UsageError, match="cannot rewrite timestamps"):
        Harness(tags=("a:1",), load=True, reproducible=True).check_capabilities()
    Harness(tags=("a:1",), load=True).check_capabilities()
    Harness(tags=("a:1",), load=True, reproducible=True, driver="docker-container").check_capabilities()
    Harness("type=oci,dest=x", reproducible=True).check_capabilities()


def test_load_without_engine() -> None:
    build = Harness(tags=("a:1",), load=True, driver="remote").build
    with pytest.raises(UsageError, match="there is no Docker engine to load the image into"):
        check_capabilities(build.request, make_engine(kind="none", store="none"), build.builder)


def test_image_that_stays_in_builder() -> None:
    with pytest.raises(UsageError, match="where nothing can use it"):
        Harness("type=image", tags=("a:1",), driver="docker-container").check_capabilities()
    Harness("type=image,push=true", tags=("a:1",), driver="docker-container").check_capabilities()
    Harness("type=image", tags=("a:1",), driver="docker").check_capabilities()


def test_sbom_scanner_hint() -> None:
    stderr = (
        "ERROR: failed to build: failed to solve: failed to resolve source metadata for "
        "docker.io/docker/buildkit-syft-scanner:stable-1: failed to do request: "
        'Head "https://registry-1.docker.io/v2/x": dial tcp: no such host\n'
    )
    with pytest.raises(BuildFailed) as excinfo:
        Harness("type=oci,dest=a.tar", sbom="true").expect_failure(stderr=stderr).execute()
    assert "--attest type=sbom,generator=IMAGE" in str(excinfo.value.hint)
    with pytest.raises(BuildFailed) as other_error:
        Harness("type=oci,dest=a.tar").expect_failure(stderr="ERROR: no\n").execute()
    assert other_error.value.hint is None
