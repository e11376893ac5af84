"""The folders of examples/ that can be built without Docker Hub, as a user runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import ROOT
from tests.support.project import repository

EXAMPLES = ROOT / "examples"


@pytest.mark.interop  # compiles Go's net/http for three platforms
def test_bake_example(engine: Engine, tmp_path: Path) -> None:
    assert engine.version
    shutil.copytree(EXAMPLES / "bake", tmp_path / "repo")
    report = repository(tmp_path).json("build-multiarch", "--bake", "docker-bake.hcl", timeout=600)
    images = {image["name"]: image["run"]["results"] for image in report["images"]}
    stdout = {name: {run["platform"]: run["stdout"] for run in runs} for name, runs in images.items()}
    motd = "the team's base\n"
    assert stdout == {
        "base": dict.fromkeys(("linux/amd64", "linux/arm64", "linux/arm/v6"), motd),
        "web": {
            "linux/amd64": f"[amd64] on {motd}",
            "linux/arm64": f"[arm64] on {motd}",
            "linux/arm/v6": f"[arm] on {motd}",
        },
    }


def test_python_wheel_is_pure(tmp_path: Path) -> None:
    """Build the wheel as the Dockerfile does; needs the package index for its build backend."""
    shutil.copytree(EXAMPLES / "python", tmp_path / "src")
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", "."]
    subprocess.run(argv, cwd=tmp_path / "src", check=True)
    assert [path.name for path in tmp_path.glob("*.whl")] == ["hello-1.0-py3-none-any.whl"]
