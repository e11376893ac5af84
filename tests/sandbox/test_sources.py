"""The sandbox runs images of every transport."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.oci import hello, write_archive, write_layout_dir
from tests.support.project import Project
from tests.support.registry.real import push, serve

PLATFORMS = ["linux/amd64", "linux/arm64", "linux/arm/v7"]


def check_run(project: Project, name: str) -> None:
    report = project.json("run-emulated", name, "--runner=sandbox", "--expect-exit=73")
    assert [(result["platform"], result["outcome"]) for result in report["results"]] == [
        (platform, "passed") for platform in PLATFORMS
    ]
    assert {result["runner"] for result in report["results"]} == {"sandbox"}


@pytest.mark.parametrize("prefix", ["oci:", ""])
def test_oci_layout(project: Project, tmp_path: Path, prefix: str) -> None:
    check_run(project, f"{prefix}{write_layout_dir(hello(), tmp_path / 'layout')}")


@pytest.mark.parametrize("prefix", ["oci-archive:", ""])
def test_oci_archive(project: Project, tmp_path: Path, prefix: str) -> None:
    check_run(project, f"{prefix}{write_archive(hello(), tmp_path / 'image.tar')}")


def test_registry(project: Project, tmp_path: Path) -> None:
    with serve(tmp_path) as host:
        push(host, hello(), "team/app")
        check_run(project, f"docker://{host}/team/app:latest")


def test_dry_run(project: Project, tmp_path: Path) -> None:
    name = f"oci-archive:{write_archive(hello(), tmp_path / 'image.tar')}"
    done = project.task("run-emulated", name, "--dry-run", "--cpu=floor", "--runner=sandbox")
    lines = [line for line in done.stdout.splitlines() if "unshare" in line]
    assert len(lines) == len(PLATFORMS)
    assert lines[1].startswith("QEMU_CPU=cortex-a53 unshare --map-root-user ")
    assert "qemu-aarch64" in lines[1]
    assert lines[1].endswith("--root=ROOT/arm64 --wd=/ -- /usr/bin/main")
