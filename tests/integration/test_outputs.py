from __future__ import annotations

import json
import tarfile
import urllib.request
from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image
from tests.support.project import Project, program

TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
CMD ["/hello"]
"""
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture
def tiny(engine: Engine, project: Project) -> Project:
    """An image of two platforms that needs neither a base nor a step that runs."""
    assert engine.version
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
    return project.write({"Dockerfile": DOCKERFILE, **files}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO)
    )


@pytest.fixture
def loaded(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for an image in the engine's store, which is removed after the test."""
    name = f"buildkit-tasks-test/{request.node.name.replace('_', '-').lower()}:1"
    yield name
    client = connect_client(engine)
    if inspect_image(client, name):
        client.api.remove_image(name, force=True)
    client.close()


def test_default_output(tiny: Project) -> None:
    built = tiny.json("build-multiarch")
    assert built["outputs"] == [{"type": "oci", "dest": "dist/repo.tar"}]
    assert tiny.json("verify-arch", "dist/repo.tar")["digest"] == built["digest"]


def test_local_output_per_platform(tiny: Project) -> None:
    built = tiny.json("build-multiarch", "-o", "type=local,dest=out")
    assert built["outputs"] == [{"type": "local", "dest": "out"}]
    for name in TWO:
        folder = tiny.folder / "out" / name.replace("/", "_")
        assert (folder / "hello").read_bytes() == program(name)


def test_tar_writes_both_into_one_file(tiny: Project) -> None:
    tiny.json("build-multiarch", "-o", "type=tar,dest=out.tar")
    with tarfile.open(tiny.folder / "out.tar") as archive:
        assert {"linux_amd64/hello", "linux_arm64/hello"} <= {
            name.lstrip("./") for name in archive.getnames()
        }


def test_oci_goes_where_it_is_told(tiny: Project) -> None:
    built = tiny.json("build-multiarch", "-o", "type=oci,dest=deep/er/x.tar")
    verified = tiny.json("verify-arch", "--platform", ",".join(TWO))
    assert (verified["subject"], verified["digest"]) == (
        f"oci-archive:{tiny.folder}/deep/er/x.tar",
        built["digest"],
    )


def test_docker_archive_takes_one_platform(tiny: Project) -> None:
    output = ("-t", "one:1", "-o", "type=docker,dest=one.tar")
    refused = tiny.json("build-multiarch", *output, expect=2)
    assert "docker archive format holds one platform" in refused["error"]
    assert not (tiny.folder / "one.tar").exists()
    tiny.json("build-multiarch", *output, "--platform=linux/arm64")
    assert tiny.json("verify-arch", "one.tar", "--platform=linux/arm64")["ok"]


def test_load_into_containerd_store(tiny: Project, engine: Engine, loaded: str) -> None:
    if engine.store != "containerd":
        pytest.skip("this engine has the graph store; see test_graph_store.py")
    built = tiny.json("build-multiarch", "--load", "-t", loaded)
    assert built["outputs"] == [{"type": "docker", "ref": loaded}]
    digests = {row["platform"]: row["digest"] for row in built["platforms"]}
    client = connect_client(engine)
    stored = available_manifests(inspect_image(client, loaded) or {})
    client.close()
    assert {str(platform): digest for platform, digest in stored.items()} == digests
    ran = tiny.json("run-emulated", f"docker-daemon:{loaded}")
    assert {row["platform"]: row["digest"] for row in ran["results"]} == digests


def test_type_image(tiny: Project, engine: Engine, loaded: str) -> None:
    if engine.store != "containerd":
        pytest.skip("type=image of several platforms needs the containerd store")
    built = tiny.json("build-multiarch", "-o", f"type=image,name={loaded}")
    assert built["outputs"] == [{"type": "image", "ref": loaded}]
    client = connect_client(engine)
    stored = inspect_image(client, loaded)
    client.close()
    assert stored is not None
    assert stored["Id"] == built["digest"]


@pytest.mark.parametrize("how", ["--push", "-o=type=registry", "-o=type=image,push=true"])
def test_push_index(tiny: Project, registry_host: str, how: str) -> None:
    name = f"{registry_host}/team/tiny:1"
    built = tiny.json("build-multiarch", how, "-t", name)
    assert [row["platform"] for row in built["platforms"]] == list(TWO)
    request = urllib.request.Request(
        f"http://{registry_host}/v2/team/tiny/manifests/1", headers={"Accept": INDEX}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        index = json.load(answer)
        assert answer.headers["Docker-Content-Digest"] == built["digest"]
    pushed = {row["digest"] for row in index["manifests"]}
    assert {row["digest"] for row in built["platforms"]} <= pushed


def test_several_outputs(tiny: Project, registry_host: str) -> None:
    outputs = (
        "-o",
        "type=oci,dest=a.tar",
        "-o",
        "type=local,dest=out",
        "-o",
        "type=tar,dest=b.tar",
        "--push",
    )
    built = tiny.json("build-multiarch", *outputs, "-t", f"{registry_host}/team/several:1")
    assert [output["type"] for output in built["outputs"]] == ["oci", "local", "tar", "registry"]
    assert tiny.json("verify-arch", "a.tar", "--platform", ",".join(TWO))["digest"] == built["digest"]
    assert (tiny.folder / "out/linux_arm64/hello").is_file()
    assert (tiny.folder / "b.tar").is_file()


@pytest.mark.parametrize("place", ["/", "~", "link"])
def test_dangerous_destination(tiny: Project, place: str) -> None:
    (tiny.folder / "real").mkdir()
    (tiny.folder / "link").symlink_to("real")
    home = tiny.with_env(HOME=str(tiny.folder))
    dest = str(tiny.folder) if place == "~" else place
    refused = home.json("build-multiarch", "-o", f"type=local,dest={dest}", expect=2)
    assert dest in refused["error"]
