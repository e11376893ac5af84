"""A builder of three BuildKits with addresses of their own, by the driver remote."""

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
from tests.support.engine.nodes import Node, bridge_nodes, docker, host_node, remote_settings
from tests.support.project import Project, program, repository

AMD64, ARM64, RISCV64 = THREE = ("linux/amd64", "linux/arm64", "linux/riscv64")
ON = dict(zip(THREE, "abc", strict=True))
# A step sees the network of its node: the addresses there tell where it ran.
SEEN = """\
FROM alpine:latest
RUN cp /proc/net/fib_trie /node
"""
TINY = """\
FROM scratch
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
RUN ["/hello"]
CMD ["/hello"]
"""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A repository whose builder has three nodes, and those."""

    project: Project
    nodes: tuple[Node, ...]


@pytest.fixture(scope="module")
def fleet(engine: Engine, buildkit_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Node a builds linux/amd64, b linux/arm64, c linux/riscv64; buildx keeps them in a store of its own."""
    folder = tmp_path_factory.mktemp("fleet")
    with bridge_nodes(engine, buildkit_image, "abc") as nodes:
        project = repository(folder).with_env(BUILDX_CONFIG=str(folder / "buildx"))
        options = [node.option(platform=platform) for node, platform in zip(nodes, THREE, strict=True)]
        project.write({"pyproject.toml": remote_settings(options, THREE)})
        project.task("setup-builder")
        yield Fleet(project=project, nodes=nodes)


@pytest.fixture
def tiny(fleet: Fleet) -> Project:
    """An image of three platforms without a base."""
    for name in ("dist", "out", "cache"):
        shutil.rmtree(fleet.project.folder / name, ignore_errors=True)
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in THREE}
    return fleet.project.write({"Dockerfile": TINY, **files})


def test_platform_is_built_on_its_node(fleet: Fleet) -> None:
    fleet.project.write({"Dockerfile": SEEN})
    fleet.project.task(
        "build-multiarch", "-o", "type=oci,dest=dist/seen.tar", "-o", "type=local,dest=out/seen"
    )
    fleet.project.task("verify-arch", "dist/seen.tar", "--platform", ",".join(THREE))
    for node, platform in zip(fleet.nodes, THREE, strict=True):
        printed = fleet.project.json(
            "run-emulated", "dist/seen.tar", f"--platform={platform}", "--command=cat /node", "--expect=."
        )["results"][0]["stdout"]
        folder = fleet.project.folder / "out/seen" / platform.replace("/", "_")
        for text in (printed, (folder / "node").read_text(encoding="utf-8")):
            addresses = {other.name for other in fleet.nodes if re.search(rf"\b{other.address}\b", text)}
            assert addresses == {node.name}


def test_setup_reports_nodes(fleet: Fleet) -> None:
    document = fleet.project.json("setup-builder")
    rows = document["platforms"]
    assert [(row["platform"], row["node"], row["native"], row["runs"]) for row in rows] == [
        (AMD64, "a", True, True),
        (ARM64, "b", False, True),
        (RISCV64, "c", False, True),
    ]
    assert [node["name"] for node in document["builder"]["nodes"]] == ["a", "b", "c"]
    assert document["builder"]["driver"] == "remote"


def test_a_second_setup_changes_nothing(fleet: Fleet, unchanged: Unchanged) -> None:
    store = Path(fleet.project.env["BUILDX_CONFIG"]) / "instances/fleet"
    before = json.loads(store.read_bytes())["Nodes"]
    with unchanged():
        done = fleet.project.task("setup-builder")
    assert json.loads(store.read_bytes())["Nodes"] == before
    assert done.seconds < 15


def test_report_names_nodes(tiny: Project) -> None:
    rows = tiny.json("build-multiarch")["platforms"]
    assert [(row["platform"], row["node"], row["native"]) for row in rows] == [
        (AMD64, "a", True),
        (ARM64, "b", False),
        (RISCV64, "c", False),
    ]
    table = tiny.task("build-multiarch").stdout
    for words in ("a, native", "b, emulated", "c, emulated"):
        assert words in table


def test_parts_join_into_archive(tiny: Project) -> None:
    built = tiny.json("build-multiarch", "-t", "fleet:1")
    assert built["outputs"] == [{"type": "oci", "dest": "dist/fleet-1.tar"}]
    verified = tiny.json("verify-arch", "--platform", ",".join(THREE))
    assert verified["digest"] == built["digest"]
    ran = tiny.json("run-emulated")
    assert {row["platform"]: row["digest"] for row in ran["results"]} == {
        row["platform"]: row["digest"] for row in built["platforms"]
    }


def test_second_build_same_digest(tiny: Project) -> None:
    first, second = (tiny.json("build-multiarch", "--reproducible", "--no-cache") for _ in range(2))
    assert first["digest"] == second["digest"]


def test_joined_archive_has_provenance(tiny: Project) -> None:
    assert attestations(tiny, "build-multiarch") == ["1 attestation: provenance"] * 3
    assert attestations(tiny, "build-multiarch", "--no-attest") == []


def attestations(project: Project, *words: str) -> list[str]:
    """What verify-arch says of the attestations of each platform that is built so."""
    project.task(*words)
    rows = project.json("verify-arch")["platforms"]
    return [check["message"] for row in rows for check in row["checks"] if check["name"] == "attestations"]


def test_local_output_per_platform(tiny: Project) -> None:
    tiny.json("build-multiarch", "-o", "type=local,dest=out")
    assert sorted(path.name for path in (tiny.folder / "out").iterdir()) == [
        "linux_amd64",
        "linux_arm64",
        "linux_riscv64",
    ]
    for name in THREE:
        assert (tiny.folder / "out" / name.replace("/", "_") / "hello").read_bytes() == program(name)


def test_load_joined_image(tiny: Project, engine: Engine) -> None:
    name = "buildkit-tasks-test/several-nodes:1"
    here = tiny.with_env(DOCKER_HOST=engine.endpoint)
    try:
        built = here.json("build-multiarch", "--load", "-t", name)
        with closing(connect_client(engine)) as client:
            stored = available_manifests(inspect_image(client, name) or {})
        assert {str(platform): digest for platform, digest in stored.items()} == {
            row["platform"]: row["digest"] for row in built["platforms"]
        }
        assert name in docker(engine, "images", "--format={{.Repository}}:{{.Tag}}").splitlines()
    finally:
        docker(engine, "image", "rm", "--force", name)


def test_load_needs_engine(tiny: Project) -> None:
    refused = tiny.json("build-multiarch", "--load", "-t", "x:1", expect=2)
    assert "no Docker engine" in refused["error"]


def test_tar_is_refused_before_the_build(tiny: Project) -> None:
    refused = tiny.json("build-multiarch", "-o", "type=tar,dest=dist/x.tar", expect=2)
    assert "several nodes" in refused["error"]
    assert not (tiny.folder / "dist").exists()


def test_node_cache_after_prune(tiny: Project, fleet: Fleet) -> None:
    tiny.json("build-multiarch", "--cache-to=type=local,dest=cache,mode=max")
    assert sorted(path.name for path in (tiny.folder / "cache").iterdir()) == [
        name.replace("/", "-") for name in THREE
    ]
    for node in fleet.nodes:
        node.buildctl("prune", "--all")
    progress = tiny.task("build-multiarch", "--progress=plain", "--cache-from=type=local,src=cache").stderr
    for platform, name in ON.items():
        assert re.search(rf"^{platform} on {name} \| #\d+ CACHED$", progress, re.MULTILINE), progress


def test_platform_without_node(tiny: Project) -> None:
    refused = tiny.json("build-multiarch", "--platform=linux/amd64,linux/arm/v5", expect=3)
    assert "linux/arm/v5" in refused["error"]
    assert "no node of builder 'fleet' can build it" in refused["error"]


def test_failing_step_names_platform(tiny: Project) -> None:
    tiny.write({"Dockerfile": TINY.replace('RUN ["/hello"]', 'RUN ["/only-$TARGETARCH"]')})
    failed = tiny.json("build-multiarch", expect=1)
    assert "linux/" in failed["error"]
    assert not (tiny.folder / "dist").exists()


def test_setup_probes_each_node(engine: Engine, buildkit_image: str, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    project = repository(tmp_path).with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))
    # Its BuildKit says that it can, and has no program to run containers with.
    lame = ("--oci-worker-binary=/usr/bin/buildctl",)
    with (
        host_node(engine, buildkit_image, "good") as good,
        host_node(engine, buildkit_image, "lame", arguments=lame) as bad,
    ):
        options = (good.option(platform=AMD64), bad.option(platform=ARM64))
        project.write({"pyproject.toml": remote_settings(options, (AMD64, ARM64))})
        document = project.json("setup-builder", expect=3)
    rows = {row["platform"]: row for row in document["platforms"]}
    assert (rows[AMD64]["runs"], rows[ARM64]["runs"]) == (True, False)
    assert "its probe fails on node lame" in rows[ARM64]["message"]


def test_push_from_nodes(engine: Engine, buildkit_image: str, registry_host: str, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    project = repository(tmp_path).with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in (AMD64, ARM64)}
    project.write({"Dockerfile": TINY, **files})
    with host_node(engine, buildkit_image, "x") as x, host_node(engine, buildkit_image, "y") as y:
        options = (x.option(platform=AMD64), y.option(platform=ARM64))
        project.write({"pyproject.toml": remote_settings(options, (AMD64, ARM64))})
        name = f"{registry_host}/team/nodes:1"
        built = project.json("build-multiarch", "--push", "-t", name, "--output=type=oci,dest=a.tar")
    assert built["outputs"] == [{"type": "oci", "dest": "a.tar"}, {"type": "registry", "ref": name}]
    assert project.json("verify-arch", "a.tar")["digest"] == built["digest"]
    assert [(row["platform"], row["node"]) for row in built["platforms"]] == [(AMD64, "x"), (ARM64, "y")]
    verified = project.json("verify-arch", f"docker://{name}", f"--platform={AMD64},{ARM64}")
    assert verified["digest"] == built["digest"]
    assert [row["digest"] for row in verified["platforms"]] == [row["digest"] for row in built["platforms"]]
