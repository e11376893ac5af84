"""`build-multiarch --push`: by digest, verified and run where it lies, and only then named."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import SubprocessRunner
from tests.integration.test_push import TWO, Place, place, plain
from tests.support.project import Project, program
from tests.support.registry.certificates import Certificate, make_certificate

__all__ = ["place", "plain"]  # fixtures

_DOCKERFILE = 'FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /main\nENTRYPOINT ["/main"]\n'
PLATFORMS = f"--platform={','.join(TWO)}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def source(project: Project, status: int = 0) -> Project:
    """A Dockerfile, and a real program for each of two platforms."""
    files = {name.partition("/")[2]: program(name, status) for name in TWO}
    return project.write({"Dockerfile": _DOCKERFILE, **files})


@pytest.fixture(params=["docker", "docker-container"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def builder(
    request: pytest.FixtureRequest, driver: str, project: Project, tmp_path: Path
) -> Iterator[list[str]]:
    """The options that choose a builder: the engine's own, or one of a real BuildKit's container."""
    if driver == "docker":
        request.getfixturevalue("engine")
        yield ["--builder=default"]
        return
    image, name = request.getfixturevalue("buildkit_image"), f"release-{uuid.uuid4().hex[:8]}"
    at = request.getfixturevalue("place" if "place" in request.fixturenames else "plain")
    config = tmp_path / "buildkitd.toml"
    # BuildKit speaks plain HTTP to the loopback interface unless it is told not to.
    authority = f'  http = false\n  ca = ["{at.tls.authority}"]\n' if at.tls else ""
    config.write_text(f'[registry."{at.host}"]\n{authority}', encoding="utf-8")
    options = [f"--driver-opt=image={image},network=host", f"--buildkitd-config={config}"]
    project.task("setup-builder", f"--name={name}", "--driver=docker-container", *options, PLATFORMS)
    yield [f"--builder={name}"]
    # Not by the task, which takes the handlers away with it: others here need them.
    engine: Engine = request.getfixturevalue("engine")
    done = SubprocessRunner().run(
        [*engine.tools.buildx, "rm", "--force", name], engine.command_options(timeout=60)
    )
    assert done.ok, done.stderr


def test_push_verify_run_tag(project: Project, place: Place, builder: list[str]) -> None:
    user = place.prepared(source(project))
    tags = f"-t{place.host}/team/app:v1,{place.host}/team/app:latest,{place.host}/other/app:v2"
    report = user.json("build-multiarch", "--push", tags, PLATFORMS, *builder)
    digest = report["digest"]
    names = ("team/app:v1", "team/app:latest", "other/app:v2")
    assert [place.digest(name) for name in names] == [digest] * 3
    assert [tag["digest"] for tag in report["pushed"]["tags"]] == [digest] * 3
    assert report["ok"]
    assert report["pushed"]["verify"]["ok"]
    assert report["pushed"]["run"]["ok"]
    assert [each["ref"] for each in report["outputs"]] == [f"{place.host}/{name}" for name in names]
    assert [bool(row["digest"]) for row in report["platforms"]] == [True, True]
    puts = [path for method, path, status in place.log() if method == "PUT" and status == 201]
    manifests = [path.rpartition("/")[2] for path in puts if "/manifests/" in path]
    assert all(each.startswith("sha256:") for each in manifests[:-3])
    assert manifests[-3:] == ["v1", "latest", "v2"]
    proofs = [
        number for number, (method, path, _) in enumerate(place.log())
        if method == "GET" and path.endswith(f"team/app/manifests/{digest}")
    ]  # fmt: skip
    named = min(
        number
        for number, (method, path, _) in enumerate(place.log())
        if path.endswith("/v1") and method == "PUT"
    )
    assert proofs
    assert min(proofs) < named


def test_failing_image_is_not_tagged(project: Project, plain: Place, builder: list[str]) -> None:
    tag = f"{plain.host}/app:v1"
    good = source(project).json("build-multiarch", "--push", f"-t{tag}", PLATFORMS, *builder)["digest"]
    report = source(project, status=9).json(
        "build-multiarch", "--push", f"-t{tag}", PLATFORMS, *builder, expect=1
    )
    assert not report["ok"]
    assert report["pushed"]["tags"] == []
    assert [row["exit_code"] for row in report["pushed"]["run"]["results"]] == [9, 9]
    assert plain.digest("app:v1") == good != report["digest"]
    shown = source(project, status=9).task(
        "build-multiarch", "--push", f"-t{tag}", PLATFORMS, *builder, expect=1
    )
    assert "no tag was set" in shown.stdout
    insisted = project.json("build-multiarch", "--push", "--no-verify", f"-t{tag}", PLATFORMS, *builder)
    assert insisted["ok"]
    assert plain.digest("app:v1") == insisted["digest"] != good


def test_archive_and_push_same_image(project: Project, plain: Place, builder: list[str]) -> None:
    outputs = ["--output=type=oci,dest=a.tar", "--push", f"-t{plain.host}/app:v1"]
    report = source(project).json("build-multiarch", *outputs, PLATFORMS, *builder)
    assert plain.digest("app:v1") == report["digest"]
    assert project.json("verify-arch", "a.tar")["digest"] == report["digest"]


def test_wrong_architecture_is_not_run(project: Project, plain: Place, builder: list[str]) -> None:
    user = source(project).write({"arm64": program("linux/amd64")})
    report = user.json("build-multiarch", "--push", f"-t{plain.host}/app:v1", PLATFORMS, *builder, expect=1)
    failed = {row["platform"] for row in report["pushed"]["verify"]["platforms"] if not row["ok"]}
    assert (failed, report["pushed"]["run"]) == ({"linux/arm64"}, None)
    assert plain.digest("app:v1") == ""


def test_split_and_merge(project: Project, plain: Place, builder: list[str]) -> None:
    user, tag = source(project), f"-t{plain.host}/team/app:v1"
    for name in TWO:
        done = user.task("build-multiarch", "--split", "--json", f"--platform={name}", tag, *builder)
        (user.folder / f"{name.rpartition('/')[2]}.json").write_text(done.stdout, encoding="utf-8")
        assert plain.digest("team/app:v1") == ""
    files = "--parts-file=amd64.json,arm64.json"
    user.task("merge-multiarch", "--parts-file=amd64.json", tag, PLATFORMS, expect=1)
    assert plain.digest("team/app:v1") == ""
    merged = user.json("merge-multiarch", files, tag, PLATFORMS)
    assert plain.digest("team/app:v1") == merged["digest"]
    assert [row["platform"] for row in merged["verify"]["platforms"]] == list(TWO)


def test_matrix_push(project: Project, plain: Place, builder: list[str]) -> None:
    del builder
    tag = f"{plain.host}/app:v1"
    user = source(project)
    report = user.json("arch-matrix", "--push", f"-t{tag}", PLATFORMS, "--driver=docker")
    assert report["ok"]
    assert plain.digest("app:v1") == report["build"]["digest"] == report["verify"]["digest"]
    failed = source(project, status=9).json("arch-matrix", "--push", f"-t{tag}", PLATFORMS, expect=1)
    assert failed["build"]["pushed"]["tags"] == []
    assert plain.digest("app:v1") == report["build"]["digest"]


def test_release_dry_run(project: Project, plain: Place, builder: list[str]) -> None:
    tag = f"{plain.host}/app:v1"
    done = source(project).task("build-multiarch", "--push", "--dry-run", f"-t{tag}", PLATFORMS, *builder)
    assert f"would tag it {tag}, once its digest is verified and has run" in done.stderr
    assert not [path for _, path, _ in plain.log() if "/app/" in path]
