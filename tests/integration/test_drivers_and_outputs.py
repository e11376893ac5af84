"""The table of drivers and outputs in docs/builders.md: every pair is run, and does what is written there."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image
from buildkit_tasks.platforms import Platform
from tests.conftest import ROOT
from tests.support.engine.nodes import docker, host_node, remote_settings, temporary_builder
from tests.support.project import Project, program, repository

TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = 'FROM scratch\nARG TARGETARCH\nCOPY hello-$TARGETARCH /hello\nRUN ["/hello"]\nCMD ["/hello"]\n'
NAME = "buildkit-tasks-test/pairs:1"
UNTRIED = "kubernetes"


def table() -> Iterator[tuple[str, str, str]]:
    """Every pair that the documentation tells of: output, driver and what it says."""
    text = (ROOT / "docs/builders.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| output "))
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    for row in rows:
        if len(row) != len(head):
            break
        output = row[0].strip("`")
        yield from ((output, driver, said) for driver, said in zip(head[1:], row[1:], strict=True))


PAIRS = list(table())


@pytest.fixture(scope="module")
def builders(
    engine: Engine, buildkit_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Project]]:
    """A repository for every driver, with an engine to load into."""

    def project(name: str, settings: str, **env: str) -> Project:
        place = tmp_path_factory.mktemp(name)
        (place / "repo").mkdir(exist_ok=True)
        files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
        made = repository(place).with_env(**env)
        return made.write({"pyproject.toml": settings, "Dockerfile": DOCKERFILE, **files})

    def remote(name: str, *options: str) -> Project:
        store = str(tmp_path_factory.mktemp(f"{name}-buildx"))
        settings = remote_settings(options, TWO, name)
        return project(name, settings, BUILDX_CONFIG=store, DOCKER_HOST=engine.endpoint)

    with (
        host_node(engine, buildkit_image, "x") as x,
        host_node(engine, buildkit_image, "y") as y,
        temporary_builder(engine, buildkit_image) as ours,
    ):
        own = f'[tool.buildkit-tasks]\ndriver = "docker"\nname = "default"\nplatforms = {list(TWO)}\n'
        yield {
            "docker": project("docker", own),
            "docker-container": project("container", ours.settings(platforms=TWO)),
            "remote, one node": remote("one", x.option()),
            "remote, several nodes": remote("several", x.option(platform=TWO[0]), y.option(platform=TWO[1])),
        }


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a pair is run: a repository, an engine to load into and a registry to push to."""

    project: Project
    engine: Engine
    host: str


def archive(at: Scene) -> None:
    at.project.task("build-multiarch", "-o", "type=oci,dest=out.tar")
    assert at.project.json("verify-arch", "out.tar", f"--platform={','.join(TWO)}")["ok"]


def load(at: Scene) -> None:
    try:
        at.project.task("build-multiarch", "--load", "-t", NAME)
        assert stored(at.engine) == set(TWO)
    finally:
        docker(at.engine, "image", "rm", "--force", NAME)


def docker_archive(at: Scene) -> None:
    options = ("-t", "one:1", "-o", "type=docker,dest=one.tar", "--platform=linux/arm64")
    at.project.task("build-multiarch", *options)
    assert at.project.json("verify-arch", "one.tar", "--platform=linux/arm64")["ok"]


def local(at: Scene) -> None:
    at.project.task("build-multiarch", "-o", "type=local,dest=folder")
    for name in TWO:
        place = at.project.folder / "folder" / name.replace("/", "_") / "hello"
        assert place.read_bytes() == program(name)


def tar(at: Scene) -> None:
    at.project.task("build-multiarch", "-o", "type=tar,dest=files.tar")
    with tarfile.open(at.project.folder / "files.tar") as found:
        names = {name.lstrip("./") for name in found.getnames()}
    assert {"linux_amd64/hello", "linux_arm64/hello"} <= names


def push(at: Scene) -> None:
    name = f"{at.host}/pairs/{at.project.folder.parent.name}:1"
    at.project.task("build-multiarch", "--push", "-t", name)
    assert at.project.json("verify-arch", f"docker://{name}", f"--platform={','.join(TWO)}")["ok"]


def image(at: Scene) -> None:
    try:
        at.project.task("build-multiarch", "-o", f"type=image,name={NAME}")
        assert stored(at.engine) == set(TWO)
    finally:
        docker(at.engine, "image", "rm", "--force", NAME)


def cache_only(at: Scene) -> None:
    built = at.project.json("build-multiarch", "-o", "type=cacheonly")
    assert built["ok"]
    assert not (at.project.folder / "dist").exists()


def stored(engine: Engine) -> set[str]:
    with closing(connect_client(engine)) as client:
        found: dict[Platform, str] = available_manifests(inspect_image(client, NAME) or {})
    return set(map(str, found))


HOW: dict[str, Callable[[Scene], None]] = {
    "type=oci,dest=FILE": archive,
    "--load": load,
    "type=docker,dest=FILE": docker_archive,
    "type=local,dest=FOLDER": local,
    "type=tar,dest=FILE": tar,
    "--push": push,
    "type=image": image,
    "type=cacheonly": cache_only,
}


@pytest.fixture(scope="module")
def scenes(builders: dict[str, Project], engine: Engine, registry_host: str) -> dict[str, Scene]:
    return {
        driver: Scene(project=project, engine=engine, host=registry_host)
        for driver, project in builders.items()
    }


@pytest.mark.parametrize(("output", "driver", "said"), [pair for pair in PAIRS if pair[1] != UNTRIED])
def test_every_pair_does_what_is_written(
    scenes: dict[str, Scene], output: str, driver: str, said: str
) -> None:
    if said == "works":
        HOW[output](scenes[driver])
        return
    refused = re.fullmatch(r'refused: "(.*)"', said)
    assert refused, f"{output} by {driver}: {said!r} is neither 'works' nor 'refused: \"WORDS\"'"
    done = scenes[driver].project.task("build-multiarch", "-o", _placed(output), "-t", NAME, expect=2)
    assert refused[1] in done.stderr


def _placed(output: str) -> str:
    return output.replace("FILE", "refused.tar").replace("FOLDER", "refused")


def test_table_is_complete() -> None:
    assert {output for output, _, _ in PAIRS} == set(HOW)
    assert {driver for _, driver, _ in PAIRS} == {
        "docker",
        "docker-container",
        "remote, one node",
        "remote, several nodes",
        UNTRIED,
    }
    assert {said for _, driver, said in PAIRS if driver == UNTRIED} == {"untried"}
