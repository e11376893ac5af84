"""The documented options of buildx, and what they do, with the real buildx and BuildKit."""

from __future__ import annotations

import json
import sys

import pytest

from buildkit_tasks.host.engine import Engine
from tests.integration.hello_image import DOCKERFILE, hello_programs
from tests.support.buildx_options import buildx_options, documented_options
from tests.support.project import Project

SHOW_CONTAINER = """\
FROM alpine AS build
RUN cat /etc/hosts > /hosts && df -k /dev/shm > /shm && ulimit -n > /nofile && ls /sys/class/net > /net
FROM scratch
COPY --from=build /hosts /shm /nofile /net /
"""
FLAGS = ("--add-host=db.example:10.1.2.3", "--shm-size=32m", "--ulimit=nofile=77:88", "--network=none")
SETTINGS = """\
[tool.buildkit-tasks]
add-hosts = ["db.example:10.1.2.3"]
shm-size = "32m"
ulimits = ["nofile=77:88"]
network = "none"
"""
BAKE_TARGET = {
    "extra-hosts": {"db.example": "10.1.2.3"},
    "shm-size": "32m",
    "ulimits": ["nofile=77:88"],
    "network": "none",
}
LOCAL = ("--platform=linux/amd64", "--output=type=local,dest=out")


@pytest.mark.parametrize("command", ["build", "bake"])
def test_every_option_is_documented(engine: Engine, command: str) -> None:
    assert buildx_options(engine.tools.buildx, command) <= documented_options(command).keys()


@pytest.mark.parametrize("source", ["flags", "settings", "bake"])
def test_options_of_containers(engine: Engine, project: Project, source: str) -> None:
    assert engine.version
    project.write({"Dockerfile": SHOW_CONTAINER})
    if source == "settings":
        project.write({"pyproject.toml": SETTINGS})
    if source == "bake":
        project.write({"docker-bake.json": json.dumps({"target": {"default": BAKE_TARGET}})})
        project.task("build-multiarch", "--bake=docker-bake.json", *LOCAL, expect=1)  # files do not run
    else:
        project.task("build-multiarch", *LOCAL, *(FLAGS if source == "flags" else ()))
    hosts, shm, nofile, net = (
        (project.folder / "out" / name).read_text(encoding="utf-8")
        for name in ("hosts", "shm", "nofile", "net")
    )
    assert "10.1.2.3\tdb.example" in hosts
    assert " 32768 " in shm
    assert (nofile, net) == ("77\n", "lo\n")


def test_dockerfile_from_stdin(engine: Engine, project: Project) -> None:
    assert engine.version
    project.write({"elsewhere": DOCKERFILE, **hello_programs()})
    command = '"$0" -m buildkit_tasks build-multiarch -f - --platform linux/amd64,linux/arm64 < elsewhere'
    done = project.command("sh", "-c", command, sys.executable)
    assert done.code == 0, done.stderr
    assert "2 of 2 platforms built." in done.stdout
    project.task("verify-arch")


def test_check_of_dockerfile(engine: Engine, project: Project) -> None:
    assert engine.version
    project.write({"Dockerfile": DOCKERFILE.replace("FROM", "from", 1), **hello_programs()})
    done = project.task("build-multiarch", "--check", expect=1)
    assert "WARNING: ConsistentInstructionCasing" in done.stdout
    assert not (project.folder / "dist").exists()
    assert "nothing was built here yet" in project.task("verify-arch", expect=2).stderr
    project.write({"Dockerfile": DOCKERFILE})
    document = project.json("build-multiarch", "--call=targets")
    assert document["results"][0]["result"]["targets"]
    failed = project.task("build-multiarch", "--check", "--target=release", expect=1)
    assert 'error: build failed: target stage "release" not found' in failed.stderr


def test_two_bake_files_and_an_override(engine: Engine, project: Project) -> None:
    assert engine.version
    dockerfile = "FROM alpine\nARG A B C\nRUN echo $A $B $C > /args\nFROM scratch\nCOPY --from=0 /args /\n"
    first, second = ({"target": {"default": {"args": args}}} for args in ({"A": "1", "B": "1"}, {"B": "2"}))
    project.write({"a.json": json.dumps(first), "b.json": json.dumps(second), "Dockerfile": dockerfile})
    options = ("--bake=a.json", "--bake=b.json", "--set=*.args.C=3", *LOCAL)
    project.task("build-multiarch", *options, expect=1)  # there is nothing to run in it
    assert (project.folder / "out/args").read_text(encoding="utf-8") == "1 2 3\n"


def test_image_id_file(engine: Engine, project: Project) -> None:
    assert engine.version
    project.write({"Dockerfile": DOCKERFILE, **hello_programs()})
    options = ("--iidfile=image.id", "--platform=linux/amd64,linux/arm64")
    document = project.json("build-multiarch", *options)
    assert (project.folder / "image.id").read_text(encoding="utf-8") == document["digest"]
