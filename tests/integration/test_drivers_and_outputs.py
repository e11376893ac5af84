"""The table of drivers and outputs in docs/builders.md: each combination behaves as documented."""

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
from tests.integration.hello_image import RUN_DOCKERFILE, TWO, hello_programs
from tests.support.engine.nodes import docker, host_node, remote_settings, temporary_builder
from tests.support.project import Project, program, repository

NAME = "buildkit-tasks-test/outputs:1"
UNTESTED_DRIVER = "kubernetes"


def read_table() -> Iterator[tuple[str, str, str]]:
    """Yield output, driver and documented result of each cell."""
    text = (ROOT / "docs/builders.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| output "))
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    for row in rows:
        if len(row) != len(head):
            break
        output = row[0].strip("`")
        yield from ((output, driver, result) for driver, result in zip(head[1:], row[1:], strict=True))


CELLS = list(read_table())


@dataclass(frozen=True, kw_only=True)
class Target:
    """A repository with one driver, an engine to load into and a registry to push to."""

    project: Project
    engine: Engine
    host: str


@pytest.fixture(scope="module")
def targets(
    engine: Engine, buildkit_image: str, registry_host: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Target]]:
    """A target for each driver."""

    def target(name: str, settings: str, **env: str) -> Target:
        folder = tmp_path_factory.mktemp(name)
        project = repository(folder).with_env(**env)
        project.write({"pyproject.toml": settings, "Dockerfile": RUN_DOCKERFILE, **hello_programs()})
        return Target(project=project, engine=engine, host=registry_host)

    def remote(name: str, *options: str) -> Target:
        config = str(tmp_path_factory.mktemp(f"{name}-buildx"))
        settings = remote_settings(options, TWO, name)
        return target(name, settings, BUILDX_CONFIG=config, DOCKER_HOST=engine.endpoint)

    with (
        host_node(engine, buildkit_image, "x") as x,
        host_node(engine, buildkit_image, "y") as y,
        temporary_builder(engine, buildkit_image) as builder,
    ):
        docker_driver = (
            f'[tool.buildkit-tasks]\ndriver = "docker"\nname = "default"\nplatforms = {list(TWO)}\n'
        )
        yield {
            "docker": target("docker", docker_driver),
            "docker-container": target("container", builder.settings(platforms=TWO)),
            "remote, one node": remote("one", x.option()),
            "remote, several nodes": remote("several", x.option(platform=TWO[0]), y.option(platform=TWO[1])),
        }


def check_archive(target: Target) -> None:
    target.project.task("build-multiarch", "-o", "type=oci,dest=out.tar")
    assert target.project.json("verify-arch", "out.tar", f"--platform={','.join(TWO)}")["ok"]


def check_load(target: Target) -> None:
    try:
        target.project.task("build-multiarch", "--load", "-t", NAME)
        assert stored_platforms(target.engine) == set(TWO)
    finally:
        docker(target.engine, "image", "rm", "--force", NAME)


def check_docker_archive(target: Target) -> None:
    options = ("-t", "one:1", "-o", "type=docker,dest=one.tar", "--platform=linux/arm64")
    target.project.task("build-multiarch", *options)
    assert target.project.json("verify-arch", "one.tar", "--platform=linux/arm64")["ok"]


def check_local(target: Target) -> None:
    target.project.task("build-multiarch", "-o", "type=local,dest=folder")
    for name in TWO:
        path = target.project.folder / "folder" / name.replace("/", "_") / "hello"
        assert path.read_bytes() == program(name)


def check_tar(target: Target) -> None:
    target.project.task("build-multiarch", "-o", "type=tar,dest=files.tar")
    with tarfile.open(target.project.folder / "files.tar") as members:
        names = {name.lstrip("./") for name in members.getnames()}
    assert {"linux_amd64/hello", "linux_arm64/hello"} <= names


def check_push(target: Target) -> None:
    name = f"{target.host}/outputs/{target.project.folder.parent.name}:1"
    target.project.task("build-multiarch", "--push", "-t", name)
    assert target.project.json("verify-arch", f"docker://{name}", f"--platform={','.join(TWO)}")["ok"]


def check_image(target: Target) -> None:
    try:
        target.project.task("build-multiarch", "-o", f"type=image,name={NAME}")
        assert stored_platforms(target.engine) == set(TWO)
    finally:
        docker(target.engine, "image", "rm", "--force", NAME)


def check_cache_only(target: Target) -> None:
    built = target.project.json("build-multiarch", "-o", "type=cacheonly")
    assert built["ok"]
    assert not (target.project.folder / "dist").exists()


def stored_platforms(engine: Engine) -> set[str]:
    """Return the platforms of the loaded image."""
    with closing(connect_client(engine)) as client:
        manifests: dict[Platform, str] = available_manifests(inspect_image(client, NAME) or {})
    return set(map(str, manifests))


# How to check that an output works.
CHECKS: dict[str, Callable[[Target], None]] = {
    "type=oci,dest=FILE": check_archive,
    "--load": check_load,
    "type=docker,dest=FILE": check_docker_archive,
    "type=local,dest=FOLDER": check_local,
    "type=tar,dest=FILE": check_tar,
    "--push": check_push,
    "type=image": check_image,
    "type=cacheonly": check_cache_only,
}


@pytest.mark.parametrize(
    ("output", "driver", "result"), [cell for cell in CELLS if cell[1] != UNTESTED_DRIVER]
)
def test_documented_result(targets: dict[str, Target], output: str, driver: str, result: str) -> None:
    if result == "works":
        CHECKS[output](targets[driver])
        return
    refused = re.fullmatch(r'refused: "(.*)"', result)
    assert refused, f"{output} with {driver}: {result!r} is neither 'works' nor 'refused: \"MESSAGE\"'"
    value = output.replace("FILE", "refused.tar").replace("FOLDER", "refused")
    done = targets[driver].project.task("build-multiarch", "-o", value, "-t", NAME, expect=2)
    assert refused[1] in done.stderr


def test_table_is_complete() -> None:
    assert {output for output, _, _ in CELLS} == set(CHECKS)
    assert {driver for _, driver, _ in CELLS} == {
        "docker",
        "docker-container",
        "remote, one node",
        "remote, several nodes",
        UNTESTED_DRIVER,
    }
    assert {result for _, driver, result in CELLS if driver == UNTESTED_DRIVER} == {"untried"}
