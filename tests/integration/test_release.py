"""`build-multiarch --push`: push by digest, verify and run from the registry, then tag."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import SubprocessRunner
from tests.integration.hello_image import TWO
from tests.integration.registry_server import RegistryServer
from tests.support.project import Project, program

DOCKERFILE = 'FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /main\nENTRYPOINT ["/main"]\n'
PLATFORMS = f"--platform={','.join(TWO)}"


def write_source(project: Project, status: int = 0) -> Project:
    """Write a Dockerfile, and a real program for each platform that exits with ``status``."""
    files = {name.partition("/")[2]: program(name, status) for name in TWO}
    return project.write({"Dockerfile": DOCKERFILE, **files})


@pytest.fixture(params=["docker", pytest.param("docker-container", marks=pytest.mark.interop)])
def builder_options(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Iterator[list[str]]:
    """The options for the engine's own builder, then for one that can use the test's registry."""
    if request.param == "docker":
        request.getfixturevalue("engine")
        yield ["--builder=default"]
        return
    image, name = request.getfixturevalue("buildkit_image"), f"release-{uuid.uuid4().hex[:8]}"
    fixture = "any_registry" if "any_registry" in request.fixturenames else "plain_registry"
    server: RegistryServer = request.getfixturevalue(fixture)
    config = tmp_path / "buildkitd.toml"
    # By default BuildKit uses plain HTTP for registries on the loopback interface.
    authority = f'  http = false\n  ca = ["{server.tls.authority}"]\n' if server.tls else ""
    config.write_text(f'[registry."{server.host}"]\n{authority}', encoding="utf-8")
    options = [f"--driver-opt=image={image},network=host", f"--buildkitd-config={config}"]
    project.task("setup-builder", f"--name={name}", "--driver=docker-container", *options, PLATFORMS)
    yield [f"--builder={name}"]
    # The task remove-builder would also remove the handlers, which other tests need.
    engine: Engine = request.getfixturevalue("engine")
    done = SubprocessRunner().run(
        [*engine.tools.buildx, "rm", "--force", name], engine.command_options(timeout=60)
    )
    assert done.ok, done.stderr


def test_push_verify_run_tag(
    project: Project, any_registry: RegistryServer, builder_options: list[str]
) -> None:
    project = any_registry.configure(write_source(project))
    names = ("team/app:v1", "team/app:latest", "other/app:v2")
    tags = ",".join(f"{any_registry.host}/{name}" for name in names)
    report = project.json("build-multiarch", "--push", f"-t{tags}", PLATFORMS, *builder_options)
    digest = report["digest"]
    assert [any_registry.digest(name) for name in names] == [digest] * 3
    assert [tag["digest"] for tag in report["pushed"]["tags"]] == [digest] * 3
    assert report["ok"]
    assert report["pushed"]["verify"]["ok"]
    assert report["pushed"]["run"]["ok"]
    assert [each["ref"] for each in report["outputs"]] == [f"{any_registry.host}/{name}" for name in names]
    assert [bool(row["digest"]) for row in report["platforms"]] == [True, True]
    puts = [path for method, path, status in any_registry.access_log() if method == "PUT" and status == 201]
    manifests = [path.rpartition("/")[2] for path in puts if "/manifests/" in path]
    assert all(each.startswith("sha256:") for each in manifests[:-3])
    assert manifests[-3:] == ["v1", "latest", "v2"]
    requests = [(method, path) for method, path, _ in any_registry.access_log()]
    pull = requests.index(("GET", f"/v2/team/app/manifests/{digest}"))
    assert pull < requests.index(("PUT", "/v2/team/app/manifests/v1"))


def test_failing_image_is_not_tagged(
    project: Project, plain_registry: RegistryServer, builder_options: list[str]
) -> None:
    push = ("--push", f"-t{plain_registry.host}/app:v1", PLATFORMS, *builder_options)
    good = write_source(project).json("build-multiarch", *push)["digest"]
    report = write_source(project, status=9).json("build-multiarch", *push, expect=1)
    assert not report["ok"]
    assert report["pushed"]["tags"] == []
    assert [row["exit_code"] for row in report["pushed"]["run"]["results"]] == [9, 9]
    assert plain_registry.digest("app:v1") == good != report["digest"]
    assert "no tag was set" in project.task("build-multiarch", *push, expect=1).stdout
    unverified = project.json("build-multiarch", *push, "--no-verify")
    assert unverified["ok"]
    assert plain_registry.digest("app:v1") == unverified["digest"] != good


def test_archive_and_push_same_image(
    project: Project, plain_registry: RegistryServer, builder_options: list[str]
) -> None:
    outputs = ["--output=type=oci,dest=a.tar", "--push", f"-t{plain_registry.host}/app:v1"]
    report = write_source(project).json("build-multiarch", *outputs, PLATFORMS, *builder_options)
    assert plain_registry.digest("app:v1") == report["digest"]
    assert project.json("verify-arch", "a.tar")["digest"] == report["digest"]


def test_wrong_architecture_is_not_run(
    project: Project, plain_registry: RegistryServer, builder_options: list[str]
) -> None:
    project = write_source(project).write({"arm64": program("linux/amd64")})
    report = project.json(
        "build-multiarch", "--push", f"-t{plain_registry.host}/app:v1", PLATFORMS, *builder_options, expect=1
    )
    failed = {row["platform"] for row in report["pushed"]["verify"]["platforms"] if not row["ok"]}
    assert (failed, report["pushed"]["run"]) == ({"linux/arm64"}, None)
    assert plain_registry.digest("app:v1") == ""


def test_split_and_merge(
    project: Project, plain_registry: RegistryServer, builder_options: list[str]
) -> None:
    project, tag = write_source(project), f"-t{plain_registry.host}/team/app:v1"
    for name in TWO:
        done = project.task(
            "build-multiarch", "--split", "--json", f"--platform={name}", tag, *builder_options
        )
        (project.folder / f"{name.rpartition('/')[2]}.json").write_text(done.stdout, encoding="utf-8")
        assert plain_registry.digest("team/app:v1") == ""
    files = "--parts-file=amd64.json,arm64.json"
    project.task("merge-multiarch", "--parts-file=amd64.json", tag, PLATFORMS, expect=1)
    assert plain_registry.digest("team/app:v1") == ""
    merged = project.json("merge-multiarch", files, tag, PLATFORMS)
    assert plain_registry.digest("team/app:v1") == merged["digest"]
    assert [row["platform"] for row in merged["verify"]["platforms"]] == list(TWO)


def test_matrix_push(engine: Engine, project: Project, plain_registry: RegistryServer) -> None:
    assert engine.version
    push = ("--push", f"-t{plain_registry.host}/app:v1", PLATFORMS)
    report = write_source(project).json("arch-matrix", *push, "--driver=docker")
    assert report["ok"]
    assert plain_registry.digest("app:v1") == report["build"]["digest"] == report["verify"]["digest"]
    failed = write_source(project, status=9).json("arch-matrix", *push, expect=1)
    assert failed["build"]["pushed"]["tags"] == []
    assert plain_registry.digest("app:v1") == report["build"]["digest"]


def test_release_dry_run(
    project: Project, plain_registry: RegistryServer, builder_options: list[str]
) -> None:
    tag = f"{plain_registry.host}/app:v1"
    done = write_source(project).task(
        "build-multiarch", "--push", "--dry-run", f"-t{tag}", PLATFORMS, *builder_options
    )
    assert f"would tag it {tag}, once its digest is verified and has run" in done.stderr
    assert not [path for _, path, _ in plain_registry.access_log() if "/app/" in path]
