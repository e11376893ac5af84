"""Let crane, an independent client that checks every digest, validate pushed and merged images."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.oci.copy import push
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.platforms import Platform
from tests.support.oci import hello
from tests.support.registry import real as registry

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    with registry.serve(tmp_path) as host:
        yield host


def run_crane(crane: Path, *args: str) -> str:
    result = subprocess.run([str(crane), *args], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_crane_validates_push(crane: Path, host: str) -> None:
    memory = hello(PLATFORMS)
    digest = push.copy_image(memory, Reference.parse(f"{host}/team/app")).digest
    source = Reference.parse(f"{host}/team/app@{digest}")
    push.tag_image(source, [Reference.parse(f"{host}/team/app:v1"), Reference.parse(f"{host}/other/app:v2")])
    for name in ("team/app:v1", "other/app:v2"):
        assert run_crane(crane, "digest", f"{host}/{name}") == str(digest)
        run_crane(crane, "validate", "--remote", f"{host}/{name}")


def test_crane_validates_merge(crane: Path, host: str) -> None:
    repository = Reference.parse(f"{host}/team/app")
    digests = [push.copy_image(hello([name]), repository).digest for name in PLATFORMS]
    parts = [Reference.parse(f"{host}/team/app@{digest}") for digest in digests]
    merged = push.push_index(parts, repository, [Platform.parse(name) for name in PLATFORMS])
    run_crane(crane, "validate", "--remote", f"{host}/team/app@{merged.root.digest}")
    for platform in PLATFORMS:
        digest = run_crane(crane, "digest", "--platform", platform, f"{host}/team/app@{merged.root.digest}")
        assert digest == str(dict(merged.platforms)[Platform.parse(platform)])
