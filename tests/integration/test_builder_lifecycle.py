"""A builder with the driver docker-container: its settings, and how it is created again."""

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
SETTINGS = (
    'mirrors = ["http://127.0.0.1:5001", "https://mirror.example.org/hub"]',
    'plain_http = ["127.0.0.1:5000", "registry.example.org:8080"]',
    "parallelism = 3",
    "builder_cache = 700",
    'allow = ["security.insecure"]',
)


@pytest.fixture
def builder(engine: Engine, buildkit_image: str) -> Iterator[TemporaryBuilder]:
    with temporary_builder(engine, buildkit_image) as temporary:
        yield temporary


def is_cached(project: Project) -> bool:
    """Build, and return whether every step came from the builder's cache."""
    cached = steps(project.task("build-multiarch", "--progress=plain").stderr)
    assert len(cached) == 2
    return all(cached.values())


def test_recreate_drops_or_keeps_cache(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings(), "Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    assert not is_cached(project)
    project.task("setup-builder", "--recreate", "--keep-state")
    assert is_cached(project)
    project.task("setup-builder", "--recreate")
    assert not is_cached(project)
    assert (len(builder.containers()), len(builder.volumes())) == (1, 1)


def test_settings_reach_buildkitd_toml(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings(*SETTINGS)})
    assert project.json("setup-builder")["ok"]
    config = tomllib.loads(builder.configuration(project.folder))
    assert config["registry"] == {
        "docker.io": {"mirrors": ["127.0.0.1:5001", "mirror.example.org/hub"]},
        "127.0.0.1:5000": {"http": True},
        "127.0.0.1:5001": {"http": True},
        "registry.example.org:8080": {"http": True},
    }
    assert config["worker"]["oci"] == {"max-parallelism": 3, "gc": True, "maxUsedSpace": "700MB"}
    policies = builder.buildctl("debug", "workers", "--format={{json .}}")
    assert str(700 << 20) in policies  # as BuildKit has parsed 700MB
    assert "--allow-insecure-entitlement=security.insecure" in builder.arguments()
    assert project.json("setup-builder")["ok"]  # a second setup finds no difference


def test_no_entitlements_by_default(builder: TemporaryBuilder, project: Project) -> None:
    project.write({"pyproject.toml": builder.settings()})
    project.task("setup-builder")
    assert "--allow-insecure-entitlement=security.insecure" not in builder.arguments()
    project.write({"pyproject.toml": builder.settings('allow = ["security.insecure"]')})
    refused = project.json("setup-builder", expect=3)
    assert "does not allow the entitlements security.insecure" in refused["error"]


def test_user_buildkitd_config(builder: TemporaryBuilder, project: Project) -> None:
    text = "# by hand\n[worker.oci]\n  max-parallelism = 2\n"
    project.write({"pyproject.toml": builder.settings(), "buildkitd.toml": text})
    project.task("setup-builder", "--buildkitd-config=buildkitd.toml")
    assert project.json("setup-builder", "--buildkitd-config=buildkitd.toml")["ok"]
    assert tomllib.loads(builder.configuration(project.folder)) == tomllib.loads(text)
