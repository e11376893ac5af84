"""``--cpu=floor``: runs on the oldest CPU model of each platform's baseline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.platforms import Platform
from tests.conftest import ROOT, TEN
from tests.support.project import Project, repository

ARM_V6 = "linux/arm/v6"
PLATFORMS = (ARM_V6, "linux/arm/v7", "linux/amd64", "linux/arm64")


@pytest.fixture(scope="module")
def classic(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A built repository whose Dockerfile, as many do, cross-compiles Go without GOARM."""
    assert engine.version
    folder = tmp_path_factory.mktemp("classic")
    shutil.copytree(ROOT / "tests/fixtures/classic", folder / "repo")
    project = repository(folder)
    project.task("build-multiarch", f"--platform={','.join(PLATFORMS)}", timeout=1100)
    return project


def outcomes(report: Any) -> dict[str, str]:
    return {row["platform"]: row["outcome"] for row in report["results"]}


@pytest.mark.parametrize("runner", ["sandbox", "docker"])
def test_classic_image_passes_on_max_cpu(classic: Project, runner: str) -> None:
    report = classic.json("run-emulated", f"--runner={runner}", r"--expect=\[{goarch}\]")
    assert outcomes(report) == dict.fromkeys(PLATFORMS, "passed")


@pytest.mark.parametrize("runner", ["sandbox", "docker"])
def test_classic_image_fails_on_arm1176(classic: Project, runner: str) -> None:
    options = (f"--runner={runner}", "--cpu=floor", "--platform=linux/arm/v6,linux/arm/v7,linux/arm64")
    report = classic.json("run-emulated", *options, expect=1)
    assert outcomes(report) == {
        ARM_V6: "illegal-instruction", "linux/arm/v7": "passed", "linux/arm64": "passed"
    }  # fmt: skip
    row = report["results"][0]
    assert "GOARM=6" in row["message"]
    assert row["emulator"]["cpu"] == "arm1176"


def test_example_passes_on_floor_cpu(hello: Project) -> None:
    hello.task("build-multiarch", timeout=1100)
    report = hello.json("run-emulated", "--runner=sandbox", "--cpu=floor")
    assert outcomes(report) == dict.fromkeys(TEN, "passed")
    cpus = {row["platform"]: row["emulator"]["cpu"] for row in report["results"]}
    assert cpus == {platform: Platform.parse(platform).baseline_cpu for platform in TEN}
    assert all(row["emulated"] for row in report["results"])


def test_docker_native_cpu_is_refused(hello: Project) -> None:
    hello.task("build-multiarch", timeout=1100)
    options = ("--runner=docker", "--cpu=floor", "--platform=linux/amd64,linux/arm/v6")
    report = hello.json("run-emulated", *options, expect=1)
    assert outcomes(report) == {"linux/amd64": "not-registered", ARM_V6: "passed"}
    assert "--runner=sandbox" in report["results"][0]["message"]


def test_native_emulator_is_private(hello: Project, tmp_path: Path) -> None:
    """The emulator of the native platform is used only where emulation is asked for."""
    project = hello.with_env(INVOKE_BUILDKIT_CACHE="", TMPDIR=str(tmp_path))
    project.task("build-multiarch", timeout=1100)
    report = project.json("run-emulated", "--runner=sandbox", "--cpu=both", "--platform=linux/amd64")
    assert [row["emulated"] for row in report["results"]] == [False, True]
    assert [row["outcome"] for row in report["results"]] == ["passed", "passed"]
