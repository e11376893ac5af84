"""Pushes to a real registry: the order of requests, and tags only after verification and runs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from buildkit_tasks.host.engine import Engine
from tests.integration.hello_image import TWO
from tests.integration.registry_server import RegistryServer, write_docker_login
from tests.support.oci import (
    Json,
    MemoryImage,
    add_platform,
    make_tar,
    platform_json,
    put_manifest,
    write_archive,
)
from tests.support.project import Project, program
from tests.support.registry import real as registry


def attested_image(*platforms: str, status: int = 0) -> MemoryImage:
    """Return an image of tiny real programs, with an attestation for each as buildx creates it."""
    memory = MemoryImage()
    images = [
        add_platform(memory, name, [make_tar({"main": program(name, status)})], Entrypoint=["/main"])
        for name in platforms
    ]
    return memory.set_index([*images, *(_put_attestation(memory, image) for image in images)])


def _put_attestation(memory: MemoryImage, image: Json) -> Json:
    """Store an attestation manifest (BuildKit docs, attestation-storage.md) and return its index entry."""
    platform = platform_json("unknown/unknown")
    statement = {"_type": "https://in-toto.io/Statement/v0.1", "subject": [], "for": image["digest"]}
    layer = memory.put(
        statement,
        "application/vnd.in-toto+json",
        annotations={"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"},
    )
    manifest = put_manifest(memory, {**platform, "rootfs": {"type": "layers", "diff_ids": []}}, [layer])
    annotations = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"],
    }
    return {**manifest, "platform": platform, "annotations": annotations}


def test_push_archive(project: Project, any_registry: RegistryServer) -> None:
    memory = attested_image(*TWO)
    archive = write_archive(memory, project.folder / "image.tar")
    report = any_registry.configure(project).json(
        "push-multiarch", str(archive), f"-t{any_registry.host}/team/app:v1,{any_registry.host}/other/app:v2"
    )
    digest = str(memory.root_descriptor().digest)
    assert report["ok"]
    assert report["digest"] == digest
    assert [any_registry.digest(name) for name in ("team/app:v1", "other/app:v2")] == [digest] * 2
    assert [tag["moved"] for tag in report["tags"]] == [True, True]
    assert [row["platform"] for row in report["platforms"]] == list(TWO)
    assert report["verify"]["subject"] == f"docker://{any_registry.host}/team/app@{digest}"
    assert {row["outcome"] for row in report["run"]["results"]} == {"passed"}
    for stored, data in memory.blobs.items():
        responses = [any_registry.fetch(f"other/app/{kind}/{stored}") for kind in ("blobs", "manifests")]
        assert data in [response.content for response in responses if response.ok]


def test_blobs_are_mounted(project: Project, any_registry: RegistryServer) -> None:
    archive = write_archive(attested_image(*TWO), project.folder / "image.tar")
    any_registry.configure(project).task(
        "push-multiarch", str(archive), f"-t{any_registry.host}/team/app:v1,{any_registry.host}/other/app:v2"
    )
    requests = [request for request in any_registry.access_log() if "/other/app/blobs" in request[1]]
    posts = [(path, status) for method, path, status in requests if method == "POST"]
    mounts = [status for path, status in posts if "mount=sha256" in path and "from=team%2Fapp" in path]
    assert mounts == [201] * 7
    assert len(posts) == 7
    assert [path for method, path, _ in requests if method == "PUT"] == []


def test_request_order(project: Project, plain_registry: RegistryServer) -> None:
    memory = attested_image(*TWO)
    archive = write_archive(memory, project.folder / "image.tar")
    tags = (f"--tag={plain_registry.host}/team/app:v1", f"--tag={plain_registry.host}/team/app:latest")
    plain_registry.configure(project).task("push-multiarch", str(archive), *tags)
    log = plain_registry.access_log()
    puts = [path.partition("?")[0] for method, path, status in log if method == "PUT" and status == 201]
    root = f"/v2/team/app/manifests/{memory.root_descriptor().digest}"
    fetched = Counter(path for method, path, status in log if method == "GET" and "/blobs/" in path)
    assert set(fetched.values()) == {1}  # verification and runs share one download
    blobs, manifests = puts[:7], puts[7:12]  # the attestations share a config; four manifests and the index
    assert all("/blobs/uploads/" in path for path in blobs)
    assert all(path.startswith("/v2/team/app/manifests/sha256:") for path in manifests)
    assert manifests[-1] == root
    assert puts[12:] == ["/v2/team/app/manifests/v1", "/v2/team/app/manifests/latest"]
    pushed = [index for index, line in enumerate(log) if line == ("PUT", root, 201)]
    tagged = [index for index, line in enumerate(log) if line[:2] == ("PUT", "/v2/team/app/manifests/v1")]
    pulled = [
        index for index, (method, path, _) in enumerate(log) if method == "GET" and "/blobs/sha256:" in path
    ]
    assert max(pushed) < min(pulled) < max(pulled) < min(tagged)


def test_failing_run_leaves_tags(project: Project, plain_registry: RegistryServer) -> None:
    project = plain_registry.configure(project)
    good = write_archive(attested_image(*TWO), project.folder / "good.tar")
    bad = write_archive(attested_image(*TWO, status=3), project.folder / "bad.tar")
    project.task("push-multiarch", str(good), f"--tag={plain_registry.host}/team/app:v1")
    before = plain_registry.digest("team/app:v1")
    junit = project.folder / "push.xml"
    done = project.task(
        "push-multiarch", str(bad), f"--tag={plain_registry.host}/team/app:v1", f"--report={junit}", expect=1
    )
    assert plain_registry.digest("team/app:v1") == before
    assert "exit status 3, expected 0" in done.stdout
    assert "No tag was set." in done.stdout
    suites = {suite.attrib["name"]: suite.attrib for suite in ET.parse(junit).getroot()}  # noqa: S314 - ours
    assert {name: suite["failures"] for name, suite in suites.items()} == {
        "verify": "0", "run": "2", "push": "1",
    }  # fmt: skip


def test_unexpected_platforms_leave_tags(project: Project, plain_registry: RegistryServer) -> None:
    archive = write_archive(attested_image("linux/amd64"), project.folder / "image.tar")
    options = (f"--tag={plain_registry.host}/team/app:v1", f"--platform={','.join(TWO)}")
    report = plain_registry.configure(project).json("push-multiarch", str(archive), *options, expect=1)
    assert (report["tags"], report["run"], report["verify"]["ok"]) == ([], None, False)
    assert plain_registry.digest("team/app:v1") == ""


def test_no_verify(project: Project, plain_registry: RegistryServer) -> None:
    archive = write_archive(attested_image(*TWO, status=3), project.folder / "image.tar")
    report = plain_registry.configure(project).json(
        "push-multiarch", str(archive), f"--tag={plain_registry.host}/team/app:v1", "--no-verify"
    )
    assert (report["verify"], report["run"]) == (None, None)
    assert plain_registry.digest("team/app:v1") == report["digest"]
    assert not [line for line in plain_registry.access_log() if line[0] == "GET" and "/blobs/" in line[1]]


def test_push_dry_run(project: Project, plain_registry: RegistryServer) -> None:
    memory = attested_image(*TWO)
    archive = write_archive(memory, project.folder / "image.tar")
    done = plain_registry.configure(project).task(
        "push-multiarch", str(archive), f"--tag={plain_registry.host}/team/app:v1", "--dry-run"
    )
    assert "would push 7 blobs" in done.stdout
    assert f"would tag it {plain_registry.host}/team/app:v1" in done.stdout
    assert plain_registry.access_log() == []


def test_merge_parts(project: Project, any_registry: RegistryServer) -> None:
    project = any_registry.configure(project)
    parts = []
    for name in TWO:
        archive = write_archive(attested_image(name), project.folder / "part.tar")
        tag = f"--tag={any_registry.host}/team/app:part-{name[6:]}"
        report = project.json("push-multiarch", str(archive), tag, "--no-verify")
        parts.append(f"{any_registry.host}/team/app@{report['digest']}")
    (project.folder / "parts.txt").write_text("\n".join(parts), encoding="utf-8")
    options = ("--parts-file=parts.txt", f"--tag={any_registry.host}/team/app:v1")
    missing = project.task(
        "merge-multiarch", *options, f"--platform={','.join((*TWO, 'linux/s390x'))}", expect=1
    )
    assert "no part is for linux/s390x" in missing.stderr
    assert any_registry.digest("team/app:v1") == ""
    report = project.json("merge-multiarch", *options, f"--platform={','.join(TWO[::-1])}")
    assert report["ok"]
    assert any_registry.digest("team/app:v1") == report["digest"]
    index = any_registry.fetch("team/app/manifests/v1").json()
    described = ["/".join(entry["platform"].values()) for entry in index["manifests"]]
    assert sorted(described[2:]) == ["unknown/unknown"] * 2
    assert [row["platform"] for row in report["platforms"]] == list(TWO[::-1])
    subjects = [entry["annotations"]["vnd.docker.reference.digest"] for entry in index["manifests"][2:]]
    assert subjects == [entry["digest"] for entry in index["manifests"][:2]]


def test_wrong_password(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    archive = write_archive(attested_image(*TWO), project.folder / "image.tar")
    with registry.serve(folder, login=True) as host:
        write_docker_login(project.folder, host, "wrong")
        project = project.with_env(DOCKER_CONFIG=str(project.folder))
        done = project.task("push-multiarch", str(archive), f"--tag={host}/team/app:v1", expect=4)
    assert f"docker login {host}" in done.stderr
    assert "wrong" not in done.stderr


def test_merge_manifests_and_indexes(
    engine: Engine, project: Project, plain_registry: RegistryServer
) -> None:
    assert engine.version
    project = plain_registry.configure(project).write(
        {
            "Dockerfile": 'FROM scratch\nARG TARGETARCH\nCOPY main-$TARGETARCH /main\nCMD ["/main"]\n',
            **{f"main-{name[6:]}": program(name) for name in TWO},
        }
    )
    tag = f"--tag={plain_registry.host}/team/app:v1"
    for name, attest in zip(TWO, ("--no-attest", "--provenance=mode=max"), strict=True):
        done = project.task("build-multiarch", "--split", f"--platform={name}", tag, attest, "--json")
        (project.folder / f"{name[6:]}.json").write_text(done.stdout, encoding="utf-8")
    assert plain_registry.digest("team/app:v1") == ""
    report = project.json(
        "merge-multiarch", "--parts-file=amd64.json,arm64.json", tag, f"--platform={','.join(TWO)}"
    )
    assert plain_registry.digest("team/app:v1") == report["digest"]
    entries = plain_registry.fetch("team/app/manifests/v1").json()["manifests"]
    assert [entry["platform"]["architecture"] for entry in entries] == ["amd64", "arm64", "unknown"]
    assert entries[2]["annotations"]["vnd.docker.reference.digest"] == entries[1]["digest"]
