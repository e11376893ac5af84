"""A common Dockerfile with a known fault (no GOARM), in a repository without settings."""

from __future__ import annotations

import shutil

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import ROOT
from tests.support.project import Project

PLATFORMS = "linux/amd64,linux/arm64,linux/arm/v6"


@pytest.fixture(scope="module")
def classic(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Project:
    assert engine.version
    folder = tmp_path_factory.mktemp("classic") / "repo"
    shutil.copytree(ROOT / "tests/fixtures/classic", folder)
    return Project(folder=folder, env={"CI": ""})


def test_missing_goarm_is_found(classic: Project) -> None:
    built = classic.json("build-multiarch", "-t", "first:latest", "--platform", PLATFORMS, timeout=590)
    assert [row["platform"] for row in built["platforms"]] == PLATFORMS.split(",")
    assert (classic.folder / "dist/first-latest.tar").is_file()
    verified = classic.json("verify-arch", "--platform", PLATFORMS, expect=1)
    assert verified["digest"] == built["digest"]
    # Without GOARM, Go compiles for ARMv7: QEMU's default CPU runs that, a real ARMv6 does not.
    ((platform, check),) = (
        (row["platform"], check)
        for row in verified["platforms"]
        for check in row["checks"]
        if not check["ok"]
    )
    assert (platform, check["name"], check["path"]) == ("linux/arm/v6", "instruction-set", "/root/main")
    assert "needs ARMv7 (Go build info: GOARM=7)" in check["message"]
    ran = classic.json("run-emulated", "--expect", r"for \[{goarch}\]")
    assert [row["outcome"] for row in ran["results"]] == ["passed"] * 3
    assert [row["digest"] for row in ran["results"]] == [row["digest"] for row in built["platforms"]]
