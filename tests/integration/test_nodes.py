"""A builder with the driver remote and three nodes, each with its own address."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image
from tests.conftest import Unchanged
from tests.integration.hello_image import ADDRESSES_DOCKERFILE, RUN_DOCKERFILE, TWO, hello_programs
from tests.support.engine.nodes import Node, bridge_nodes, docker, host_node, remote_settings
from tests.support.project import Project, program, repository

AMD64, ARM64, RISCV64 = THREE = ("linux/amd64", "linux/arm64", "linux/riscv64")
NODE_NAMES = dict(zip(THREE, "abc", strict=True))


@dataclass(frozen=True, kw_only=True)
class RemoteBuilder:
    """A repository whose builder has three nodes, and those nodes."""

    project: Project
    nodes: tuple[Node, ...]


@pytest.fixture(scope="module")
def remote_builder(
    engine: Engine, buildkit_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteBuilder]:
    """Node a builds linux/amd64, b linux/arm64, c linux/riscv64, with its own buildx configuration."""
    folder = tmp_path_factory.mktemp("fleet")
    with bridge_nodes(engine, buildkit_image, "abc") as nodes:
        project = repository(folder).with_env(BUILDX_CONFIG=str(folder / "buildx"))
        options = [node.option(platform=platform) for node, platform in zip(nodes, THREE, strict=True)]
        project.write({"pyproject.toml": remote_settings(options, THREE)})
        project.task("setup-builder")
        yield RemoteBuilder(project=project, nodes=nodes)


@pytest.fixture
def hello_project(remote_builder: RemoteBuilder) -> Project:
    """An image of three platforms without a base."""
    for name in ("dist", "out", "cache"):
        shutil.rmtree(remote_builder.project.folder / name, ignore_errors=True)
    return remote_builder.project.write({"Dockerfile": RUN_DOCKERFILE, **hello_programs(THREE)})


def test_platform_is_built_on_its_node(remote_builder: RemoteBuilder) -> None:
    project = remote_builder.project.write({"Dockerfile": ADDRESSES_DOCKERFILE})
    project.task("build-multiarch", "-o=type=oci,dest=dist/nodes.tar", "-o=type=local,dest=out/nodes")
    project.task("verify-arch", "dist/nodes.tar", "--platform", ",".join(THREE))
    for node, platform in zip(remote_builder.nodes, THREE, strict=True):
        options = (f"--platform={platform}", "--command=cat /node", "--expect=.")
        stdout = project.json("run-emulated", "dist/nodes.tar", *options)["results"][0]["stdout"]
        exported = project.folder / "out/nodes" / platform.replace("/", "_") / "node"
        for text in (stdout, exported.read_text(encoding="utf-8")):
            names = {other.name for other in remote_builder.nodes if re.search(rf"\b{other.address}\b", text)}
            assert names == {node.name}


def test_setup_reports_nodes(remote_builder: RemoteBuilder) -> None:
    document = remote_builder.project.json("setup-builder")
    rows = document["platforms"]
    assert [(row["platform"], row["node"], row["native"], row["runs"]) for row in rows] == [
        (AMD64, "a", True, True),
        (ARM64, "b", False, True),
        (RISCV64, "c", False, True),
    ]
    assert [node["name"] for node in document["builder"]["nodes"]] == ["a", "b", "c"]
    assert document["builder"]["driver"] == "remote"


def test_second_setup_changes_nothing(remote_builder: RemoteBuilder, unchanged: Unchanged) -> None:
    store = Path(remote_builder.project.env["BUILDX_CONFIG"]) / "instances/fleet"
    before = json.loads(store.read_bytes())["Nodes"]
    with unchanged():
        remote_builder.project.task("setup-builder")
    assert json.loads(store.read_bytes())["Nodes"] == before


def test_report_names_nodes(hello_project: Project) -> None:
    rows = hello_project.json("build-multiarch")["platforms"]
    assert [(row["platform"], row["node"], row["native"]) for row in rows] == [
        (AMD64, "a", True),
        (ARM64, "b", False),
        (RISCV64, "c", False),
    ]
    table = hello_project.task("build-multiarch").stdout
    for cell in ("a, native", "b, emulated", "c, emulated"):
        assert cell in table


def test_parts_join_into_archive(hello_project: Project) -> None:
    built = hello_project.json("build-multiarch", "-t", "fleet:1")
    assert built["outputs"] == [{"type": "oci", "dest": "dist/fleet-1.tar"}]
    verified = hello_project.json("verify-arch", "--platform", ",".join(THREE))
    assert verified["digest"] == built["digest"]
    ran = hello_project.json("run-emulated")
    assert {row["platform"]: row["digest"] for row in ran["results"]} == {
        row["platform"]: row["digest"] for row in built["platforms"]
    }


def test_second_build_same_digest(hello_project: Project) -> None:
    first, second = (hello_project.json("build-multiarch", "--reproducible", "--no-cache") for _ in range(2))
    assert first["digest"] == second["digest"]


def test_joined_archive_has_provenance(hello_project: Project) -> None:
    assert attestation_messages(hello_project) == ["1 attestation: provenance"] * 3
    assert attestation_messages(hello_project, "--no-attest") == []


def attestation_messages(project: Project, *options: str) -> list[str]:
    """Build with these options; return what verify-arch reports of each platform's attestations."""
    project.task("build-multiarch", *options)
    rows = project.json("verify-arch")["platforms"]
    return [check["message"] for row in rows for check in row["checks"] if check["name"] == "attestations"]


def test_local_output_per_platform(hello_project: Project) -> None:
    hello_project.json("build-multiarch", "-o", "type=local,dest=out")
    assert sorted(path.name for path in (hello_project.folder / "out").iterdir()) == [
        "linux_amd64",
        "linux_arm64",
        "linux_riscv64",
    ]
    for name in THREE:
        assert (hello_project.folder / "out" / name.replace("/", "_") / "hello").read_bytes() == program(name)


def test_load_joined_image(hello_project: Project, engine: Engine) -> None:
    name = "buildkit-tasks-test/several-nodes:1"
    project = hello_project.with_env(DOCKER_HOST=engine.endpoint)
    try:
        built = project.json("build-multiarch", "--load", "-t", name)
        with closing(connect_client(engine)) as client:
            stored = available_manifests(inspect_image(client, name) or {})
        assert {str(platform): digest for platform, digest in stored.items()} == {
            row["platform"]: row["digest"] for row in built["platforms"]
        }
        assert name in docker(engine, "images", "--format={{.Repository}}:{{.Tag}}").splitlines()
    finally:
        docker(engine, "image", "rm", "--force", name)


def test_load_needs_engine(hello_project: Project) -> None:
    refused = hello_project.json("build-multiarch", "--load", "-t", "x:1", expect=2)
    assert "no Docker engine" in refused["error"]


def test_tar_output_is_refused(hello_project: Project) -> None:
    refused = hello_project.json("build-multiarch", "-o", "type=tar,dest=dist/x.tar", expect=2)
    assert "several nodes" in refused["error"]
    assert not (hello_project.folder / "dist").exists()


def test_node_cache_after_prune(hello_project: Project, remote_builder: RemoteBuilder) -> None:
    hello_project.json("build-multiarch", "--cache-to=type=local,dest=cache,mode=max")
    assert sorted(path.name for path in (hello_project.folder / "cache").iterdir()) == [
        name.replace("/", "-") for name in THREE
    ]
    for node in remote_builder.nodes:
        node.buildctl("prune", "--all")
    progress = hello_project.task(
        "build-multiarch", "--progress=plain", "--cache-from=type=local,src=cache"
    ).stderr
    for platform, name in NODE_NAMES.items():
        assert re.search(rf"^{platform} on {name} \| #\d+ CACHED$", progress, re.MULTILINE), progress


def test_platform_without_node(hello_project: Project) -> None:
    refused = hello_project.json("build-multiarch", "--platform=linux/amd64,linux/arm/v5", expect=3)
    assert "linux/arm/v5" in refused["error"]
    assert "no node of builder 'fleet' can build it" in refused["error"]


def test_failing_step_names_platform(hello_project: Project) -> None:
    hello_project.write({"Dockerfile": RUN_DOCKERFILE.replace('RUN ["/hello"]', 'RUN ["/only-$TARGETARCH"]')})
    failed = hello_project.json("build-multiarch", expect=1)
    assert "linux/" in failed["error"]
    assert not (hello_project.folder / "dist").exists()


def test_setup_probes_each_node(engine: Engine, buildkit_image: str, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    project = repository(tmp_path).with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))
    # This BuildKit reports its platforms, but cannot run a step: buildctl is not an OCI runtime.
    no_runtime = ("--oci-worker-binary=/usr/bin/buildctl",)
    with (
        host_node(engine, buildkit_image, "good") as good,
        host_node(engine, buildkit_image, "bad", arguments=no_runtime) as bad,
    ):
        options = (good.option(platform=AMD64), bad.option(platform=ARM64))
        project.write({"pyproject.toml": remote_settings(options, TWO)})
        document = project.json("setup-builder", expect=3)
    rows = {row["platform"]: row for row in document["platforms"]}
    assert (rows[AMD64]["runs"], rows[ARM64]["runs"]) == (True, False)
    assert "its probe fails on node bad" in rows[ARM64]["message"]


def test_push_from_nodes(engine: Engine, buildkit_image: str, registry_host: str, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    project = repository(tmp_path).with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))
    project.write({"Dockerfile": RUN_DOCKERFILE, **hello_programs()})
    with host_node(engine, buildkit_image, "x") as x, host_node(engine, buildkit_image, "y") as y:
        options = (x.option(platform=AMD64), y.option(platform=ARM64))
        project.write({"pyproject.toml": remote_settings(options, TWO)})
        name = f"{registry_host}/team/nodes:1"
        built = project.json("build-multiarch", "--push", "-t", name, "--output=type=oci,dest=a.tar")
    assert built["outputs"] == [{"type": "oci", "dest": "a.tar"}, {"type": "registry", "ref": name}]
    assert project.json("verify-arch", "a.tar")["digest"] == built["digest"]
    assert [(row["platform"], row["node"]) for row in built["platforms"]] == [(AMD64, "x"), (ARM64, "y")]
    verified = project.json("verify-arch", f"docker://{name}", f"--platform={AMD64},{ARM64}")
    assert verified["digest"] == built["digest"]
    assert [row["digest"] for row in verified["platforms"]] == [row["digest"] for row in built["platforms"]]
