"""The same source, built twice with nothing cached: the same bytes."""

from __future__ import annotations

import json
import os
import tarfile
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client, inspect_image
from tests.support.engine.builders import container_builder
from tests.support.project import Project, program

TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM alpine:latest
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
RUN echo made > /made && mkdir /folder && /hello
CMD ["/hello"]
"""
COMMITTED = 1_600_000_000
GIVEN = 1_500_000_000


@pytest.fixture
def tiny(engine: Engine, project: Project) -> Project:
    """An image of two platforms on a base, with a step that makes files."""
    assert engine.version
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
    return project.write({"Dockerfile": DOCKERFILE, **files}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO), SOURCE_DATE_EPOCH=""
    )


def twice(project: Project, *options: str) -> tuple[str, str]:
    """The digests of two builds with nothing cached, the files of the second with new times."""
    digests = []
    for _ in range(2):
        digests.append(project.json("build-multiarch", "--no-cache", *options)["digest"])
        for path in project.folder.glob("hello-*"):
            os.utime(path)
    first, second = digests
    return first, second


def times(project: Project, archive: str) -> set[int]:
    """Every time in an archive's layers, bases aside, and in the history of its images."""
    found = set()
    with tarfile.open(project.folder / archive) as outer:
        blobs = {
            member.name.rpartition("/")[2]: member for member in outer if member.name.startswith("blobs/")
        }

        def read(descriptor: dict[str, Any]) -> Any:
            stream = outer.extractfile(blobs[descriptor["digest"].partition(":")[2]])
            assert stream is not None
            return stream

        index = json.load(outer.extractfile("index.json"))  # type: ignore[arg-type]
        for image in json.load(read(index["manifests"][0]))["manifests"]:
            manifest = json.load(read(image))
            for layer in manifest["layers"][-2:]:
                with tarfile.open(fileobj=read(layer)) as inner:
                    found |= {int(member.mtime) for member in inner}
    return found


def test_same_digest_without_cache(tiny: Project, builders: tuple[str, ...]) -> None:
    first, second = twice(tiny, "--reproducible", *builders)
    assert first == second
    assert [path.name for path in (tiny.folder / "dist").iterdir()] == ["repo.tar"]


def test_digests_differ_by_default(tiny: Project, builders: tuple[str, ...]) -> None:
    first, second = twice(tiny, "--no-attest", *builders)
    assert first != second


def test_epoch_alone_is_not_enough(tiny: Project) -> None:
    first, second = twice(tiny.with_env(SOURCE_DATE_EPOCH=str(GIVEN)), "--no-attest")
    assert first != second


def test_two_pushes_name_one_digest(tiny: Project, builders: tuple[str, ...], registry_host: str) -> None:
    name = f"{registry_host}/team/same:{len(builders)}"
    first, second = twice(tiny, "--reproducible", "-o=type=registry", "-t", name, *builders)
    assert first == second


def test_same_digest_on_two_nodes(tiny: Project, engine: Engine, buildkit_image: str) -> None:
    with container_builder(engine, buildkit_image, nodes=TWO) as name:
        first, second = twice(tiny, "--reproducible", f"--builder={name}")
        assert first == second
        first, second = twice(tiny, "--no-attest", f"--builder={name}")
        assert first != second


def test_same_image_loaded_twice(tiny: Project, container: str, engine: Engine) -> None:
    name = "buildkit-tasks-test/same:1"
    ids = []
    client = connect_client(engine)
    for _ in range(2):
        tiny.json(
            "build-multiarch", "--no-cache", "--reproducible", f"--builder={container}", "--load", "-t", name
        )
        stored = inspect_image(client, name)
        assert stored is not None
        ids.append(stored["Id"])
        client.api.remove_image(name, force=True)
    client.close()
    assert ids[0] == ids[1]


def test_docker_driver_refuses_load(tiny: Project) -> None:
    refused = tiny.json("build-multiarch", "--reproducible", "--load", "-t", "same:1", expect=2)
    assert "cannot rewrite times" in refused["error"]


def test_epoch_of_last_commit(tiny: Project) -> None:
    identity = {
        f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    git = tiny.with_env(GIT_COMMITTER_DATE=f"{COMMITTED} +0000", **identity)
    for words in (("init", "--quiet"), ("commit", "--quiet", "--allow-empty", "--message=x")):
        done = git.command("git", *words)
        assert done.code == 0, done.stderr
    done = tiny.task("build-multiarch", "--reproducible", "-o", "type=oci,dest=out.tar")
    assert f"SOURCE_DATE_EPOCH={COMMITTED} (the last git commit)" in done.stderr
    assert times(tiny, "out.tar") == {COMMITTED}


def test_epoch_from_environment(tiny: Project) -> None:
    given = tiny.with_env(SOURCE_DATE_EPOCH=str(GIVEN))
    done = given.task("build-multiarch", "--reproducible", "-o", "type=oci,dest=out.tar")
    assert f"SOURCE_DATE_EPOCH={GIVEN} (the environment)" in done.stderr
    assert times(tiny, "out.tar") == {GIVEN}
    done = tiny.task("build-multiarch", "--reproducible", "-o", "type=oci,dest=out.tar")
    assert "SOURCE_DATE_EPOCH=0 (no git commit: " in done.stderr
    assert times(tiny, "out.tar") == {0}


def test_attestation_changes_digest(tiny: Project) -> None:
    done = tiny.task("build-multiarch", "--reproducible", "--provenance=mode=min")
    assert "--provenance contains timestamps: the index digest differs in every build" in done.stderr
    options = ("--no-cache", "--reproducible", "--provenance=mode=min")
    first, second = (tiny.json("build-multiarch", *options) for _ in range(2))
    assert first["digest"] != second["digest"]
    assert first["platforms"] == second["platforms"]  # the images themselves are the same


def test_bad_epoch(tiny: Project) -> None:
    bad = tiny.with_env(SOURCE_DATE_EPOCH="yesterday")
    refused = bad.json("build-multiarch", expect=2)
    assert "environment SOURCE_DATE_EPOCH: 'yesterday' is not a valid number of seconds" in refused["error"]
    assert not (tiny.folder / "dist").exists()


@pytest.mark.parametrize("kind", ["local", "tar"])
def test_local_output_timestamps(tiny: Project, kind: str) -> None:
    given = tiny.with_env(SOURCE_DATE_EPOCH=str(GIVEN))
    given.task("build-multiarch", "--reproducible", "-o", f"type={kind},dest=out", "--platform=linux/arm64")
    if kind == "local":
        assert int((tiny.folder / "out/made").stat().st_mtime) == GIVEN
        return
    with tarfile.open(tiny.folder / "out") as archive:
        assert {int(member.mtime) for member in archive if member.name.endswith("made")} == {GIVEN}
