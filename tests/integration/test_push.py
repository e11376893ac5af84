from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.oci.model import MANIFEST_TYPES, OCI_INDEX, Digest
from tests.conftest import TEN
from tests.integration.test_registry_source import keep
from tests.support.oci import MemoryImage, add_platform, make_tar, platform_json, put_manifest, write_archive
from tests.support.project import Project, program
from tests.support.registry import real as registry
from tests.support.registry.certificates import Certificate, make_certificate

TWO = ("linux/amd64", "linux/arm64")
_ACCESS = re.compile(r'"(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1" (\d{3})')


@dataclass(frozen=True, kw_only=True)
class Place:
    """A real registry, where its log is, and how one gets in."""

    host: str
    folder: Path
    tls: Certificate | None = None
    login: bool = False

    def prepared(self, project: Project) -> Project:
        """The project, as a user has set it up for this registry."""
        config = project.folder / "docker"
        config.mkdir(exist_ok=True)
        if self.login:
            keep(config, self.host, registry.PASSWORD)
        project = project.with_env(DOCKER_CONFIG=str(config))
        return project.with_env(SSL_CERT_FILE=str(self.tls.authority)) if self.tls else project

    def fetch(self, path: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.tls.authority) if self.tls else True
            session.auth = (registry.USER, registry.PASSWORD) if self.login else None
            scheme = "https" if self.tls else "http"
            headers = {"Accept": ", ".join({OCI_INDEX, *MANIFEST_TYPES})}
            return session.get(f"{scheme}://{self.host}/v2/{path}", headers=headers, timeout=30)

    def digest(self, name: str) -> str:
        """What a ``REPOSITORY:TAG`` names; nothing if that is nothing."""
        repository, _, tag = name.rpartition(":")
        found = self.fetch(f"{repository}/manifests/{tag}")
        return str(Digest.from_bytes(found.content)) if found.ok else ""

    def log(self) -> list[tuple[str, str, int]]:
        """The requests of its access log: method, path and status, as they were answered."""
        text = (self.folder / "log").read_text(encoding="utf-8")
        return [(method, path, int(status)) for method, path, status in _ACCESS.findall(text)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["plain", "tls", "login"])
def place(request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate) -> Iterator[Place]:
    folder = tmp_path / "registry"
    folder.mkdir()
    tls, login = certificate if request.param == "tls" else None, request.param == "login"
    with registry.serve(folder, tls=tls, login=login) as host:
        yield Place(host=host, folder=folder, tls=tls, login=login)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "registry"
    folder.mkdir()
    with registry.serve(folder) as host:
        yield Place(host=host, folder=folder)


def image(*platforms: str, status: int = 0) -> MemoryImage:
    """Tiny real programs, an attestation for each, as buildx makes them."""
    memory = MemoryImage()
    entries, others = [], []
    for name in platforms:
        entry = add_platform(memory, name, [make_tar({"main": program(name, status)})], Entrypoint=["/main"])
        statement = memory.put(
            json.dumps({"_type": "https://in-toto.io/Statement/v0.1", "subject": [], "for": name}).encode(),
            "application/vnd.in-toto+json",
            annotations={"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"},
        )
        config = {**platform_json("unknown/unknown"), "rootfs": {"type": "layers", "diff_ids": []}}
        about = put_manifest(memory, config, [statement])
        annotations = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": entry["digest"],
        }
        entries.append(entry)
        others.append({**about, "platform": platform_json("unknown/unknown"), "annotations": annotations})
    return memory.set_index([*entries, *others])


def test_push_archive(project: Project, place: Place) -> None:
    memory = image(*TWO)
    archive = write_archive(memory, project.folder / "image.tar")
    report = place.prepared(project).json(
        "push-multiarch", str(archive), f"-t{place.host}/team/app:v1,{place.host}/other/app:v2"
    )
    digest = str(memory.root_descriptor().digest)
    assert report["ok"]
    assert report["digest"] == digest == place.digest("team/app:v1") == place.digest("other/app:v2")
    assert [tag["moved"] for tag in report["tags"]] == [True, True]
    assert [row["platform"] for row in report["platforms"]] == list(TWO)
    assert report["verify"]["subject"] == f"docker://{place.host}/team/app@{digest}"
    assert {row["outcome"] for row in report["run"]["results"]} == {"passed"}
    for stored, data in memory.blobs.items():
        kinds = [place.fetch(f"other/app/{kind}/{stored}") for kind in ("blobs", "manifests")]
        assert data in [found.content for found in kinds if found.ok]


def test_blobs_are_mounted(project: Project, place: Place) -> None:
    archive = write_archive(image(*TWO), project.folder / "image.tar")
    place.prepared(project).task(
        "push-multiarch", str(archive), f"-t{place.host}/team/app:v1,{place.host}/other/app:v2"
    )
    asked = [(method, path, status) for method, path, status in place.log() if "/other/app/blobs" in path]
    posts = [(path, status) for method, path, status in asked if method == "POST"]
    assert [status for path, status in posts if "mount=sha256" in path and "from=team%2Fapp" in path] == [
        201
    ] * 7
    assert len(posts) == 7
    assert [path for method, path, _ in asked if method == "PUT"] == []


def test_request_order(project: Project, plain: Place) -> None:
    memory = image(*TWO)
    archive = write_archive(memory, project.folder / "image.tar")
    tags = (f"--tag={plain.host}/team/app:v1", f"--tag={plain.host}/team/app:latest")
    plain.prepared(project).task("push-multiarch", str(archive), *tags)
    log = plain.log()
    puts = [path.partition("?")[0] for method, path, status in log if method == "PUT" and status == 201]
    root = f"/v2/team/app/manifests/{memory.root_descriptor().digest}"
    fetched = Counter(path for method, path, status in log if method == "GET" and "/blobs/" in path)
    assert set(fetched.values()) == {1}  # for both proofs together
    blobs, manifests = puts[:7], puts[7:12]  # the attestations share a config; four manifests and the index
    assert all("/blobs/uploads/" in path for path in blobs)
    assert all(path.startswith("/v2/team/app/manifests/sha256:") for path in manifests)
    assert manifests[-1] == root
    assert puts[12:] == ["/v2/team/app/manifests/v1", "/v2/team/app/manifests/latest"]
    stored = [index for index, line in enumerate(log) if line == ("PUT", root, 201)]
    named = [index for index, line in enumerate(log) if line[:2] == ("PUT", "/v2/team/app/manifests/v1")]
    layers = [
        index for index, (method, path, _) in enumerate(log) if method == "GET" and "/blobs/sha256:" in path
    ]
    assert max(stored) < min(layers) < max(layers) < min(named)  # what was stored was read, then named


def test_failing_run_leaves_tags(project: Project, plain: Place) -> None:
    project = plain.prepared(project)
    good = write_archive(image(*TWO), project.folder / "good.tar")
    bad = write_archive(image(*TWO, status=3), project.folder / "bad.tar")
    project.task("push-multiarch", str(good), f"--tag={plain.host}/team/app:v1")
    before = plain.digest("team/app:v1")
    junit = project.folder / "push.xml"
    done = project.task(
        "push-multiarch", str(bad), f"--tag={plain.host}/team/app:v1", f"--report={junit}", expect=1
    )
    assert plain.digest("team/app:v1") == before
    assert "exit status 3, expected 0" in done.stdout
    assert "No tag was set." in done.stdout
    suites = {suite.attrib["name"]: suite.attrib for suite in ET.parse(junit).getroot()}  # noqa: S314 - ours
    assert {name: suite["failures"] for name, suite in suites.items()} == {
        "verify": "0", "run": "2", "push": "1",
    }  # fmt: skip


def test_unexpected_platforms_leave_tags(project: Project, plain: Place) -> None:
    archive = write_archive(image("linux/amd64"), project.folder / "image.tar")
    options = (f"--tag={plain.host}/team/app:v1", f"--platform={','.join(TWO)}")
    report = plain.prepared(project).json("push-multiarch", str(archive), *options, expect=1)
    assert (report["tags"], report["run"], report["verify"]["ok"]) == ([], None, False)
    assert plain.digest("team/app:v1") == ""


def test_no_verify(project: Project, plain: Place) -> None:
    archive = write_archive(image(*TWO, status=3), project.folder / "image.tar")
    report = plain.prepared(project).json(
        "push-multiarch", str(archive), f"--tag={plain.host}/team/app:v1", "--no-verify"
    )
    assert (report["verify"], report["run"]) == (None, None)
    assert plain.digest("team/app:v1") == report["digest"]
    assert not [line for line in plain.log() if line[0] == "GET" and "/blobs/" in line[1]]


def test_push_dry_run(project: Project, plain: Place) -> None:
    memory = image(*TWO)
    archive = write_archive(memory, project.folder / "image.tar")
    done = plain.prepared(project).task(
        "push-multiarch", str(archive), f"--tag={plain.host}/team/app:v1", "--dry-run"
    )
    assert "would push 7 blobs" in done.stdout
    assert f"would tag it {plain.host}/team/app:v1" in done.stdout
    assert plain.log() == []


def test_merge_parts(project: Project, place: Place) -> None:
    project = place.prepared(project)
    parts = []
    for name in TWO:
        archive = write_archive(image(name), project.folder / "part.tar")
        tag = f"--tag={place.host}/team/app:part-{name[6:]}"
        report = project.json("push-multiarch", str(archive), tag, "--no-verify")
        parts.append(f"{place.host}/team/app@{report['digest']}")
    (project.folder / "parts.txt").write_text("\n".join(parts), encoding="utf-8")
    options = ("--parts-file=parts.txt", f"--tag={place.host}/team/app:v1")
    missing = project.task(
        "merge-multiarch", *options, f"--platform={','.join((*TWO, 'linux/s390x'))}", expect=1
    )
    assert "no part is for linux/s390x" in missing.stderr
    assert place.digest("team/app:v1") == ""
    report = project.json("merge-multiarch", *options, f"--platform={','.join(TWO[::-1])}")
    assert report["ok"]
    assert place.digest("team/app:v1") == report["digest"]
    index = place.fetch("team/app/manifests/v1").json()
    described = ["/".join(entry["platform"].values()) for entry in index["manifests"]]
    assert sorted(described[2:]) == ["unknown/unknown"] * 2
    assert [row["platform"] for row in report["platforms"]] == list(TWO[::-1])
    about = [entry["annotations"]["vnd.docker.reference.digest"] for entry in index["manifests"][2:]]
    assert about == [entry["digest"] for entry in index["manifests"][:2]]


def test_wrong_password(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    archive = write_archive(image(*TWO), project.folder / "image.tar")
    with registry.serve(folder, login=True) as host:
        keep(project.folder, host, "wrong")
        project = project.with_env(DOCKER_CONFIG=str(project.folder))
        done = project.task("push-multiarch", str(archive), f"--tag={host}/team/app:v1", expect=4)
    assert f"docker login {host}" in done.stderr
    assert "wrong" not in done.stderr


def test_push_request_count(project: Project, plain: Place) -> None:
    archive = write_archive(image(*TEN), project.folder / "image.tar")
    project = plain.prepared(project)
    started = time.monotonic()
    project.task("push-multiarch", str(archive), f"--tag={plain.host}/team/app:v1", "--no-verify")
    assert time.monotonic() - started < 6  # some 160 requests: 1 s where nothing else runs


def test_merge_manifests_and_indexes(engine: Engine, project: Project, plain: Place) -> None:
    assert engine.version
    project = plain.prepared(project).write(
        {
            "Dockerfile": 'FROM scratch\nARG TARGETARCH\nCOPY main-$TARGETARCH /main\nCMD ["/main"]\n',
            **{f"main-{name[6:]}": program(name) for name in TWO},
        }
    )
    tag = f"--tag={plain.host}/team/app:v1"
    for name, form in zip(TWO, ("--no-attest", "--provenance=mode=max"), strict=True):
        done = project.task("build-multiarch", "--split", f"--platform={name}", tag, form, "--json")
        (project.folder / f"{name[6:]}.json").write_text(done.stdout, encoding="utf-8")
    assert plain.digest("team/app:v1") == ""
    report = project.json(
        "merge-multiarch", "--parts-file=amd64.json,arm64.json", tag, f"--platform={','.join(TWO)}"
    )
    assert plain.digest("team/app:v1") == report["digest"]
    entries = plain.fetch("team/app/manifests/v1").json()["manifests"]
    assert [entry["platform"]["architecture"] for entry in entries] == ["amd64", "arm64", "unknown"]
    assert entries[2]["annotations"]["vnd.docker.reference.digest"] == entries[1]["digest"]
