"""The commands that a dry run shows instead of running an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run import dry_run
from buildkit_tasks.run.dry_run import show_docker_commands, show_sandbox_commands
from buildkit_tasks.run.service import RunRequest
from tests.support.fake_engine import make_engine
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


def docker_lines(image: str, cpu: str = "max") -> list[str]:
    commands = Scripted(dry_run=True)
    report = show_docker_commands(
        RunRequest(image=image, platforms=(ARM64,), cpu=cpu), make_engine(), commands
    )
    assert report.results == ()
    return commands.dry_run_lines


def test_image_of_engine_is_run_by_its_name() -> None:
    (run,) = docker_lines("docker-daemon:app:1")
    assert run.startswith("docker run --rm ")
    assert run.endswith(" --platform=linux/arm64 -- app:1")


def test_archive_is_loaded_first() -> None:
    load, run = docker_lines("oci-archive:dist/image.tar", cpu="floor")
    assert load == "docker load --input=dist/image.tar"
    assert run.endswith(" --platform=linux/arm64 --env=QEMU_CPU=cortex-a53 -- IMAGE")


@pytest.mark.parametrize("cpu", ["max", "floor"])
def test_emulator_of_sandbox(cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "native_platform", lambda: AMD64)
    archive = write_archive(hello(("linux/amd64", "linux/arm64")), tmp_path / "image.tar")
    commands = Scripted(dry_run=True)
    show_sandbox_commands(RunRequest(image=f"oci-archive:{archive}", cpu=cpu), open_image, commands)
    emulated = ["--load-interp=" in line for line in commands.dry_run_lines]
    assert emulated == [cpu == "floor", True]
