"""A builder of the driver docker-container from its making to its removal, as settings ask for it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.builders import steps
from tests.support.engine.nodes import TemporaryBuilder, temporary_builder
from tests.support.project import Project, program

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY hello /hello\nRUN ["/hello"]\n'
INSECURE = (
    '# syntax=docker/dockerfile:1-labs\nFROM scratch\nCOPY hello /hello\nRUN --network=host ["/hello"]\n'
)
SETTINGS = (
    'mirrors = ["http://127.0.0.1:5001", "https://mirror.example.org/hub"]',
    'plain_http = ["127.0.0.1:5000", "registry.example.org:8080"]',
    "parallelism = 3",
    "builder_cache = 700",
    'allow = ["security.insecure"]',
)


@pytest.fixture
def ours(engine: Engine, buildkit_image: str) -> Iterator[TemporaryBuilder]:
    with temporary_builder(engine, buildkit_image) as builder:
        yield builder


@pytest.fixture
def tiny(ours: TemporaryBuilder, project: Project) -> Project:
    return project.write(
        {"pyproject.toml": ours.settings(), "Dockerfile": DOCKERFILE, "hello": program(AMD64)}
    )


def cached(project: Project) -> bool:
    """Build, and tell whether every step came from the builder's cache."""
    found = steps(project.task("build-multiarch", "--progress=plain").stderr)
    assert len(found) == 2
    return all(found.values())


def test_recreate_drops_or_keeps_cache(ours: TemporaryBuilder, tiny: Project) -> None:
    assert not cached(tiny)
    tiny.task("setup-builder", "--recreate", "--keep-state")
    assert cached(tiny)
    tiny.task("setup-builder", "--recreate")
    assert not cached(tiny)
    assert (len(ours.containers()), len(ours.volumes())) == (1, 1)


def test_settings_reach_buildkitd_toml(ours: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": ours.settings(*SETTINGS)})
    assert project.json("setup-builder")["ok"]
    held = tomllib.loads(ours.configuration(project.folder))
    assert held["registry"] == {
        "docker.io": {"mirrors": ["127.0.0.1:5001", "mirror.example.org/hub"]},
        "127.0.0.1:5000": {"http": True},
        "127.0.0.1:5001": {"http": True},
        "registry.example.org:8080": {"http": True},
    }
    assert held["worker"]["oci"] == {"max-parallelism": 3, "gc": True, "maxUsedSpace": "700MB"}
    policies = ours.buildctl("debug", "workers", "--format={{json .}}")
    assert str(700 << 20) in policies  # BuildKit has understood it
    assert "--allow-insecure-entitlement=security.insecure" in ours.arguments()
    # They are what is there: a second setup finds no difference.
    assert project.json("setup-builder")["ok"]


def test_no_entitlements_by_default(ours: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": ours.settings()})
    project.task("setup-builder")
    assert "--allow-insecure-entitlement=security.insecure" not in ours.arguments()
    project.write({"pyproject.toml": ours.settings('allow = ["security.insecure"]')})
    refused = project.json("setup-builder", expect=3)
    assert "does not allow the entitlements security.insecure" in refused["error"]


def test_user_buildkitd_config(ours: TemporaryBuilder, project: Project) -> None:
    text = "# ours\n[worker.oci]\n  max-parallelism = 2\n"
    project.write({"pyproject.toml": ours.settings(), "buildkitd.toml": text})
    project.task("setup-builder", "--buildkitd-config=buildkitd.toml")
    assert project.json("setup-builder", "--buildkitd-config=buildkitd.toml")["ok"]
    assert tomllib.loads(ours.configuration(project.folder)) == tomllib.loads(text)
