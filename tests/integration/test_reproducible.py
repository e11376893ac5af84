"""Reproducible builds: two builds of the same source without a cache have the same digest."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client, inspect_image
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports import open_image
from tests.integration.hello_image import TWO, hello_programs
from tests.support.engine.builders import container_builder
from tests.support.project import Project

DOCKERFILE = """\
FROM alpine:latest
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
RUN echo made > /made && mkdir /folder && /hello
CMD ["/hello"]
"""
COMMIT_TIME = 1_600_000_000
EPOCH = 1_500_000_000


@pytest.fixture
def project(engine: Engine, project: Project) -> Project:
    """An image of two platforms on a base, with a step that creates files."""
    assert engine.version
    return project.write({"Dockerfile": DOCKERFILE, **hello_programs()}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO), SOURCE_DATE_EPOCH=""
    )


def build_twice(project: Project, *options: str) -> tuple[str, str]:
    """Return the digests of two builds without a cache; the files of the second have new times."""
    digests = []
    for _ in range(2):
        digests.append(project.json("build-multiarch", "--no-cache", *options)["digest"])
        for path in project.folder.glob("hello-*"):
            os.utime(path)
    first, second = digests
    return first, second


def layer_times(archive: Path) -> set[int]:
    """Return the times of all files in the layers that the Dockerfile adds to its base."""
    with open_image(str(archive)) as image:
        layers = [
            layer for _, entry in image.platform_manifests for layer in image.manifest(entry).layers[-2:]
        ]
        return {time for layer in layers for time in _file_times(read_blob(image, layer, 1 << 24))}


def _file_times(layer: bytes) -> Iterator[int]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as members:
        yield from (int(member.mtime) for member in members)


def test_same_digest_without_cache(project: Project, builder_options: tuple[str, ...]) -> None:
    first, second = build_twice(project, "--reproducible", *builder_options)
    assert first == second
    assert [path.name for path in (project.folder / "dist").iterdir()] == ["repo.tar"]


def test_digests_differ_by_default(project: Project, builder_options: tuple[str, ...]) -> None:
    first, second = build_twice(project, "--no-attest", *builder_options)
    assert first != second


def test_epoch_alone_is_not_enough(project: Project) -> None:
    first, second = build_twice(project.with_env(SOURCE_DATE_EPOCH=str(EPOCH)), "--no-attest")
    assert first != second


def test_same_digest_pushed_twice(
    project: Project, builder_options: tuple[str, ...], registry_host: str
) -> None:
    name = f"{registry_host}/team/same:{len(builder_options)}"
    first, second = build_twice(project, "--reproducible", "-o=type=registry", "-t", name, *builder_options)
    assert first == second


def test_same_digest_on_two_nodes(project: Project, engine: Engine, buildkit_image: str) -> None:
    with container_builder(engine, buildkit_image, nodes=TWO) as name:
        first, second = build_twice(project, "--reproducible", f"--builder={name}")
        assert first == second
        first, second = build_twice(project, "--no-attest", f"--builder={name}")
        assert first != second


def test_same_image_loaded_twice(project: Project, builder: str, engine: Engine) -> None:
    name = "buildkit-tasks-test/same:1"
    ids = []
    client = connect_client(engine)
    for _ in range(2):
        project.json(
            "build-multiarch", "--no-cache", "--reproducible", f"--builder={builder}", "--load", "-t", name
        )
        stored = inspect_image(client, name)
        assert stored is not None
        ids.append(stored["Id"])
        client.api.remove_image(name, force=True)
    client.close()
    assert ids[0] == ids[1]


def test_docker_driver_refuses_load(project: Project) -> None:
    refused = project.json("build-multiarch", "--reproducible", "--load", "-t", "same:1", expect=2)
    assert "cannot rewrite times" in refused["error"]


def test_epoch_of_last_commit(project: Project) -> None:
    identity = {
        f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    git = project.with_env(GIT_COMMITTER_DATE=f"{COMMIT_TIME} +0000", **identity)
    for args in (("init", "--quiet"), ("commit", "--quiet", "--allow-empty", "--message=x")):
        done = git.command("git", *args)
        assert done.code == 0, done.stderr
    done = project.task("build-multiarch", "--reproducible", "-o", "type=oci,dest=out.tar")
    assert f"SOURCE_DATE_EPOCH={COMMIT_TIME} (the last git commit)" in done.stderr
    assert layer_times(project.folder / "out.tar") == {COMMIT_TIME}


def test_epoch_from_environment(project: Project) -> None:
    project_with_epoch = project.with_env(SOURCE_DATE_EPOCH=str(EPOCH))
    done = project_with_epoch.task("build-multiarch", "--reproducible", "-o", "type=oci,dest=out.tar")
    assert f"SOURCE_DATE_EPOCH={EPOCH} (the environment)" in done.stderr
    assert layer_times(project.folder / "out.tar") == {EPOCH}
    done = project.task("build-multiarch", "--reproducible", "-o", "type=oci,dest=out.tar")
    assert "SOURCE_DATE_EPOCH=0 (no git commit: " in done.stderr
    assert layer_times(project.folder / "out.tar") == {0}


def test_attestation_changes_digest(project: Project) -> None:
    done = project.task("build-multiarch", "--reproducible", "--provenance=mode=min")
    assert "--provenance contains timestamps: the index digest differs in every build" in done.stderr
    options = ("--no-cache", "--reproducible", "--provenance=mode=min")
    first, second = (project.json("build-multiarch", *options) for _ in range(2))
    assert first["digest"] != second["digest"]
    assert first["platforms"] == second["platforms"]  # the images themselves are the same


def test_bad_epoch(project: Project) -> None:
    bad = project.with_env(SOURCE_DATE_EPOCH="yesterday")
    refused = bad.json("build-multiarch", expect=2)
    assert "environment SOURCE_DATE_EPOCH: 'yesterday' is not a valid number of seconds" in refused["error"]
    assert not (project.folder / "dist").exists()


@pytest.mark.parametrize("kind", ["local", "tar"])
def test_local_output_timestamps(project: Project, kind: str) -> None:
    project_with_epoch = project.with_env(SOURCE_DATE_EPOCH=str(EPOCH))
    project_with_epoch.task(
        "build-multiarch", "--reproducible", "-o", f"type={kind},dest=out", "--platform=linux/arm64"
    )
    if kind == "local":
        assert int((project.folder / "out/made").stat().st_mtime) == EPOCH
        return
    with tarfile.open(project.folder / "out") as archive:
        assert {int(member.mtime) for member in archive if member.name.endswith("made")} == {EPOCH}
