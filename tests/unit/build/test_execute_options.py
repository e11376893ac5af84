"""What a build does with the caches, times and attestations that are asked of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.errors import BuildFailed, UsageError
from buildkit_tasks.report.model import NodeSummary
from tests.support.oci import hello
from tests.support.registry.hostile import hostile
from tests.unit.build.test_execute import TWO, Bench, option

NODE = NodeSummary(name="a", endpoint="tcp://10.0.0.1:1", platforms=tuple(map(str, TWO)))
BASE = "type=registry,ref=x:c"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACTIONS_RUNTIME_TOKEN", raising=False)


def asked(bench: Bench, name: str) -> list[list[str]]:
    """What each run of buildx was given for an option."""
    return [option(list(ran.argv), name) for ran in bench.run.calls]


def test_one_node_exports_once_while_it_builds() -> None:
    bench = Bench("type=oci,dest=a.tar", cache_to=("x:c",)).succeeds()
    bench.result()
    assert asked(bench, "cache-to") == [[BASE]]


def test_each_platform_built_by_itself_has_caches_of_its_own() -> None:
    with hostile() as server:
        there = f"type=registry,ref={server.add_image(hello(), 'team/cache', 'c-linux-arm-v7')}"
        bench = Bench(
            "type=oci,dest=a.tar",
            platforms=TWO[1:],
            cache_to=("x:c",),
            cache_from=(f"{server.host}/team/cache:c",),
        ).succeeds()
        bench.result()
    assert asked(bench, "cache-to") == [[f"{BASE}-linux-arm-v7"]]
    assert asked(bench, "cache-from") == [[there]]


def test_a_dry_run_asks_no_registry() -> None:
    with hostile() as server:
        bench = Bench("type=oci,dest=a.tar", cache_from=(f"{server.host}/team/cache:c",))
        bench.run.dry_run = True
        bench.result()
        assert server.received == []
    assert [word.count("cache-from") for word in bench.run.shown] == [3]


@pytest.mark.parametrize("driver", ["remote", "kubernetes"])
def test_no_registry_is_asked_for_a_builder_on_another_machine(driver: str) -> None:
    with hostile() as server:
        bench = Bench("type=oci,dest=a.tar", driver=driver, cache_from=(f"{server.host}/team/cache:c",))
        bench.build = replace(bench.build, builder=replace(bench.build.builder, nodes=(NODE,)))
        bench.succeeds().result()
        assert server.received == []
    assert [len(each) for each in asked(bench, "cache-from")] == [3]


def test_a_cache_that_buildx_leaves_out_is_told() -> None:
    bench = Bench("type=oci,dest=a.tar", cache_to=("type=gha",)).succeeds()
    bench.result()
    assert "ACTIONS_RUNTIME_TOKEN is not set" in bench.told[0]


@pytest.mark.parametrize("platforms", [TWO, TWO[:1]])
def test_a_cache_that_this_builder_cannot_export_is_refused_before_the_build(platforms: object) -> None:
    with pytest.raises(UsageError, match="graph store"):
        Bench("type=local,dest=x", store="graph", cache_to=("x:c",), platforms=platforms).check()
    with pytest.raises(UsageError, match="own builder supports"):
        Bench("type=local,dest=x", cache_to=("type=s3,bucket=b",), platforms=platforms).check()


def test_times_that_this_builder_cannot_rewrite_are_refused_before_the_build() -> None:
    with pytest.raises(UsageError, match="cannot rewrite timestamps"):
        Bench(tags=("a:1",), load=True, reproducible=True).check()
    Bench(tags=("a:1",), load=True).check()
    Bench(tags=("a:1",), load=True, reproducible=True, driver="docker-container").check()
    Bench("type=oci,dest=x", reproducible=True).check()


def test_a_scanner_that_cannot_be_pulled_is_named_with_what_to_do() -> None:
    stderr = (
        "ERROR: failed to build: failed to solve: failed to resolve source metadata for "
        "docker.io/docker/buildkit-syft-scanner:stable-1: dial tcp: no such host\n"
    )
    with pytest.raises(BuildFailed) as caught:
        Bench("type=oci,dest=a.tar", sbom="true").fails(stderr=stderr).result()
    assert "--attest type=sbom,generator=IMAGE" in str(caught.value.hint)
    with pytest.raises(BuildFailed) as other:
        Bench("type=oci,dest=a.tar").fails(stderr="ERROR: no\n").result()
    assert other.value.hint is None
