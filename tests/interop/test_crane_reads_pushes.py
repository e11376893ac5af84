"""What was pushed and merged here, as crane sees it: another client, which checks every digest anew."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.oci.copy import push as publish
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.platforms import Platform
from tests.support.oci import hello
from tests.support.registry import real as registry

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    with registry.serve(tmp_path) as host:
        yield host


def ask(crane: Path, *words: str) -> str:
    done = subprocess.run([str(crane), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_crane_validates_push(crane: Path, host: str) -> None:
    memory = hello(PLATFORMS)
    digest = publish.copy_image(memory, Reference.parse(f"{host}/team/app")).digest
    at = Reference.parse(f"{host}/team/app@{digest}")
    publish.tag_image(at, [Reference.parse(f"{host}/team/app:v1"), Reference.parse(f"{host}/other/app:v2")])
    for name in ("team/app:v1", "other/app:v2"):
        assert ask(crane, "digest", f"{host}/{name}") == str(digest)
        ask(crane, "validate", "--remote", f"{host}/{name}")


def test_crane_validates_merge(crane: Path, host: str) -> None:
    place = Reference.parse(f"{host}/team/app")
    digests = [publish.copy_image(hello([name]), place).digest for name in PLATFORMS]
    parts = [Reference.parse(f"{host}/team/app@{digest}") for digest in digests]
    joined = publish.push_index(parts, place, [Platform.parse(name) for name in PLATFORMS])
    ask(crane, "validate", "--remote", f"{host}/team/app@{joined.root.digest}")
    for platform in PLATFORMS:
        found = ask(crane, "digest", "--platform", platform, f"{host}/team/app@{joined.root.digest}")
        assert found == str(dict(joined.platforms)[Platform.parse(platform)])
