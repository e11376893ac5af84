"""The driver kubernetes without a cluster: its commands, and the error for the missing cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

from buildkit_tasks.host.engine import Engine
from tests.support.project import Project

NODES = (
    "--node=name=amd,platform=linux/amd64,driver-opt=nodeselector=kubernetes.io/arch=amd64",
    "--node=name=arm,platform=linux/arm64,driver-opt=nodeselector=kubernetes.io/arch=arm64",
)
SETUP = ("setup-builder", "--driver=kubernetes", "--name=cluster", "--driver-opt=namespace=ci,replicas=3")


def without_cluster(project: Project) -> Project:
    folder = project.folder.parent
    return project.with_env(BUILDX_CONFIG=str(folder / "buildx"), KUBECONFIG=str(folder / "none"))


def test_dry_run_shows_nodes(engine: Engine, project: Project) -> None:
    done = without_cluster(project).task(*SETUP, *NODES, "--dry-run")
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    common = ["--driver-opt=namespace=ci", "--driver-opt=replicas=3"]
    create = ["create", "--name=cluster"]
    assert [argv[argv.index("create") :] for argv in commands if "create" in argv] == [
        [*create, "--driver=kubernetes", "--node=amd", *common,
         "--driver-opt=nodeselector=kubernetes.io/arch=amd64"],
        [*create, "--append", "--driver=kubernetes", "--node=arm", *common,
         "--driver-opt=nodeselector=kubernetes.io/arch=arm64"],
    ]  # fmt: skip
    assert engine.version


def test_missing_cluster(engine: Engine, project: Project) -> None:
    project = without_cluster(project)
    done = project.task(*SETUP, "--platform=linux/amd64", expect=3)
    assert "KUBECONFIG" in done.stderr
    assert list(Path(project.env["BUILDX_CONFIG"]).glob("instances/*")) == []
    assert engine.version
