"""Checks of examples/ that need neither an engine nor a registry."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.build.dockerfile import parse_base_images
from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.run.outcomes import Expectation

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_NAMES = ("bake", "c", "python", "rust")


def assert_expected(folder: Path, stdout: str) -> None:
    """Raise AssertionError unless ``stdout`` matches the example's setting ``expect`` on this machine."""
    expectation = Expectation(pattern=load_settings(environ={}, folder=folder).expect)
    assert re.search(expectation.expand_regex(native_platform()), stdout), stdout


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def works(compiler: str) -> bool:
    """Return whether a compiler runs: rustup's ``rustc`` needs a toolchain in this user's home directory."""
    program = shutil.which(compiler)
    if program is None:
        return False
    return subprocess.run([program, "--version"], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_folder_is_complete(name: str) -> None:
    files = {path.name for path in (EXAMPLES / name).iterdir()}
    assert {"README.md", "pyproject.toml", "tasks.py"} <= files
    tasks = (EXAMPLES / name / "tasks.py").read_text(encoding="utf-8")
    assert tasks.startswith("from buildkit_tasks.tasks import ns")


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_settings_are_valid(name: str) -> None:
    settings = load_settings(environ={}, folder=EXAMPLES / name)
    assert settings.expect or {image.name for image in settings.images} == {"base", "web"}


@pytest.mark.parametrize(
    ("dockerfile", "images"),
    [
        ("c/Dockerfile", ("debian:trixie-slim",)),
        ("python/Dockerfile", ("python:3.13-slim",)),
        ("rust/Dockerfile", ("rust:1-slim",)),
        ("bake/base/Dockerfile", ("alpine:latest",)),
        ("bake/web/Dockerfile", ("golang:1.27", "team-base")),
    ],
)
def test_base_images(dockerfile: str, images: tuple[str, ...]) -> None:
    text = (EXAMPLES / dockerfile).read_text(encoding="utf-8")
    assert parse_base_images(text, {}).images == images


@pytest.mark.parametrize("name", ["c", "rust"])
def test_every_platform_has_a_compiler(name: str) -> None:
    text = (EXAMPLES / name / "Dockerfile").read_text(encoding="utf-8")
    for item in load_settings(environ={}, folder=EXAMPLES / name).platforms:
        assert f"\n    {item.removeprefix('linux/').replace('/', '')}) " in text


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_c_program(tmp_path: Path) -> None:
    run("gcc", "-Wall", "-Werror", "-o", tmp_path / "hello", "hello.c", cwd=EXAMPLES / "c")
    assert_expected(EXAMPLES / "c", run(tmp_path / "hello", cwd=tmp_path))


@pytest.mark.skipif(not works("rustc"), reason="rustc is not installed, or has no toolchain")
def test_rust_program(tmp_path: Path) -> None:
    run("rustc", "-o", tmp_path / "hello", "src/main.rs", cwd=EXAMPLES / "rust")
    assert_expected(EXAMPLES / "rust", run(tmp_path / "hello", cwd=tmp_path))


def test_python_program(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "python/src/hello", tmp_path / "hello")
    stdout = run(sys.executable, "-m", "hello", cwd=tmp_path)
    assert_expected(EXAMPLES / "python", stdout)
    assert f"[{platform.machine()}]" in stdout
