"""The outputs of a build: what each type writes, loads or pushes."""

from __future__ import annotations

import json
import tarfile
import urllib.request
from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image
from tests.integration.hello_image import DOCKERFILE, TWO, hello_programs
from tests.support.project import Project, program

INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture
def project(engine: Engine, project: Project) -> Project:
    assert engine.version
    return project.write({"Dockerfile": DOCKERFILE, **hello_programs()}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO)
    )


@pytest.fixture
def image_name(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for an image in the engine's store; that image is removed after the test."""
    name = f"buildkit-tasks-test/{request.node.name.replace('_', '-').lower()}:1"
    yield name
    client = connect_client(engine)
    if inspect_image(client, name):
        client.api.remove_image(name, force=True)
    client.close()


def test_default_output(project: Project) -> None:
    built = project.json("build-multiarch")
    assert built["outputs"] == [{"type": "oci", "dest": "dist/repo.tar"}]
    assert project.json("verify-arch", "dist/repo.tar")["digest"] == built["digest"]


def test_local_output_per_platform(project: Project) -> None:
    built = project.json("build-multiarch", "-o", "type=local,dest=out")
    assert built["outputs"] == [{"type": "local", "dest": "out"}]
    for name in TWO:
        folder = project.folder / "out" / name.replace("/", "_")
        assert (folder / "hello").read_bytes() == program(name)


@pytest.mark.parametrize(
    ("output", "image"),
    [
        ("type=oci,dest=layout,tar=false", "oci:layout"),
        ("type=oci,dest=image.tar", "oci-archive:image.tar"),
        ("type=tar,dest=files.tar", ""),
        ("type=image,name=app:1", ""),
    ],
)
def test_last_built_output(project: Project, output: str, image: str) -> None:
    project.task("build-multiarch")  # what a task must not take instead
    printed = project.task("build-multiarch", "-o", output).stdout
    if not image:
        assert "image:" not in printed
        for task in ("verify-arch", "run-emulated"):
            assert "try: " in project.json(task, expect=2)["error"]
        return
    assert f"image: {image} sha256:" in printed
    for args in ([], [image]):
        subject = project.json("verify-arch", *args)["subject"]
        assert subject.partition(":")[0] == image.partition(":")[0]
        assert subject.endswith(image.partition(":")[2])
        assert project.json("run-emulated", *args)["ok"]


def test_folder_of_one_platform(project: Project) -> None:
    project.task("build-multiarch", "--platform=linux/arm64", "-o", "out")
    for args in ([], ["out"]):
        document = project.json("verify-arch", "--platform=linux/arm64", *args)
        assert [row["platform"] for row in document["platforms"]] == ["linux/arm64"]
    rows = project.json("verify-arch", "out", "--platform=linux/amd64", expect=1)["platforms"]
    assert {row["platform"]: row["ok"] for row in rows} == {"linux/amd64": False, "linux/arm64": False}


def test_tar_holds_both_platforms(project: Project) -> None:
    project.json("build-multiarch", "-o", "type=tar,dest=out.tar")
    with tarfile.open(project.folder / "out.tar") as archive:
        assert {"linux_amd64/hello", "linux_arm64/hello"} <= {
            name.lstrip("./") for name in archive.getnames()
        }


def test_oci_destination(project: Project) -> None:
    built = project.json("build-multiarch", "-o", "type=oci,dest=deep/er/x.tar")
    verified = project.json("verify-arch", "--platform", ",".join(TWO))
    assert (verified["subject"], verified["digest"]) == (
        f"oci-archive:{project.folder}/deep/er/x.tar",
        built["digest"],
    )


def test_docker_archive_takes_one_platform(project: Project) -> None:
    output = ("-t", "one:1", "-o", "type=docker,dest=one.tar")
    refused = project.json("build-multiarch", *output, expect=2)
    assert "docker archive format holds one platform" in refused["error"]
    assert not (project.folder / "one.tar").exists()
    project.json("build-multiarch", *output, "--platform=linux/arm64")
    assert project.json("verify-arch", "one.tar", "--platform=linux/arm64")["ok"]


def test_load_into_containerd_store(project: Project, engine: Engine, image_name: str) -> None:
    if engine.store != "containerd":
        pytest.skip("this engine has the graph store; see test_graphdriver_store.py")
    built = project.json("build-multiarch", "--load", "-t", image_name)
    assert built["outputs"] == [{"type": "docker", "ref": image_name}]
    digests = {row["platform"]: row["digest"] for row in built["platforms"]}
    client = connect_client(engine)
    stored = available_manifests(inspect_image(client, image_name) or {})
    client.close()
    assert {str(platform): digest for platform, digest in stored.items()} == digests
    ran = project.json("run-emulated", f"docker-daemon:{image_name}")
    assert {row["platform"]: row["digest"] for row in ran["results"]} == digests


def test_type_image(project: Project, engine: Engine, image_name: str) -> None:
    if engine.store != "containerd":
        pytest.skip("type=image of several platforms needs the containerd store")
    built = project.json("build-multiarch", "-o", f"type=image,name={image_name}")
    assert built["outputs"] == [{"type": "image", "ref": image_name}]
    client = connect_client(engine)
    stored = inspect_image(client, image_name)
    client.close()
    assert stored is not None
    assert stored["Id"] == built["digest"]


@pytest.mark.parametrize("output", ["--push", "-o=type=registry", "-o=type=image,push=true"])
def test_push_index(project: Project, registry_host: str, output: str) -> None:
    name = f"{registry_host}/team/hello:1"
    built = project.json("build-multiarch", output, "-t", name)
    assert [row["platform"] for row in built["platforms"]] == list(TWO)
    request = urllib.request.Request(
        f"http://{registry_host}/v2/team/hello/manifests/1", headers={"Accept": INDEX}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - http
        index = json.load(response)
        assert response.headers["Docker-Content-Digest"] == built["digest"]
    pushed = {row["digest"] for row in index["manifests"]}
    assert {row["digest"] for row in built["platforms"]} <= pushed


def test_several_outputs(project: Project, registry_host: str) -> None:
    outputs = ("-o=type=oci,dest=a.tar", "-o=type=local,dest=out", "-o=type=tar,dest=b.tar", "--push")
    built = project.json("build-multiarch", *outputs, "-t", f"{registry_host}/team/several:1")
    assert [output["type"] for output in built["outputs"]] == ["oci", "local", "tar", "registry"]
    assert project.json("verify-arch", "a.tar", "--platform", ",".join(TWO))["digest"] == built["digest"]
    assert (project.folder / "out/linux_arm64/hello").is_file()
    assert (project.folder / "b.tar").is_file()


@pytest.mark.parametrize("dest", ["/", "~", "link"])
def test_dangerous_destination(project: Project, dest: str) -> None:
    (project.folder / "real").mkdir()
    (project.folder / "link").symlink_to("real")
    home = project.with_env(HOME=str(project.folder))
    path = str(project.folder) if dest == "~" else dest
    refused = home.json("build-multiarch", "-o", f"type=local,dest={path}", expect=2)
    assert path in refused["error"]
