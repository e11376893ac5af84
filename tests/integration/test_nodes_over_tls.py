"""The driver remote over mutual TLS, with valid and invalid certificates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.host.builder import watch_nodes
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from tests.support.engine.nodes import Node, host_node, remote_settings
from tests.support.project import Project, program
from tests.support.registry.certificates import Certificate, make_certificate, sign
from tests.support.task_server import CompletedCommand

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY hello /hello\nRUN ["/hello"]\n'


@pytest.fixture(scope="module")
def tls_node(engine: Engine, buildkit_image: str, certificate: Certificate) -> Iterator[Node]:
    """A node that accepts clients with a certificate of its authority."""
    with host_node(engine, buildkit_image, "secured", tls=certificate) as node:
        yield node


@pytest.fixture
def project(project: Project, tmp_path: Path) -> Project:
    """A repository with its own buildx configuration."""
    project.write({"Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    return project.with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))


def tls_options(certificate: Certificate, **other: Path) -> dict[str, str]:
    """Return the options of ``--node`` for a certificate, or for ``other`` files."""
    files = {"ca": certificate.authority, "cert": certificate.certificate, "key": certificate.key, **other}
    return {name: str(path) for name, path in files.items()}


def fail_setup(project: Project, node: Node, **options: str) -> CompletedCommand:
    """Set up a builder of a node that must reject it, and check that no builder is left."""
    project.write({"pyproject.toml": remote_settings([node.option(**options)], [AMD64])})
    done = project.task("setup-builder", expect=3)
    assert re.search(r"error: node secured: (the connection to )?tcp://", done.stderr)
    assert not list(Path(project.env["BUILDX_CONFIG"]).glob("instances/*"))
    return done


def test_trusted_client_builds(project: Project, tls_node: Node, certificate: Certificate) -> None:
    option = tls_node.option(**tls_options(certificate))
    project.write({"pyproject.toml": remote_settings([option], [AMD64])})
    assert project.json("setup-builder")["ok"]
    (row,) = project.json("build-multiarch")["platforms"]
    assert (row["node"], row["native"]) == ("secured", True)


def test_watchdog_uses_certificates(project: Project, tls_node: Node, certificate: Certificate) -> None:
    option = tls_node.option(**tls_options(certificate))
    project.write({"pyproject.toml": remote_settings([option], [AMD64])})
    (node,) = project.json("setup-builder")["builder"]["nodes"]
    summary = NodeSummary(
        name=node["name"],
        endpoint=node["endpoint"],
        platforms=tuple(node["platforms"]),
        driver_opt=tuple(node["driver_opt"]),
    )
    builder = BuilderSummary(name="fleet", driver="remote", nodes=(summary,))
    watch = watch_nodes(builder, [Platform.parse(AMD64)])
    assert watch is not None
    assert [watch() for _ in range(4)] == [None] * 4


def test_servername(engine: Engine, buildkit_image: str, project: Project, tmp_path: Path) -> None:
    named = make_certificate(tmp_path / "named", names="DNS:builder.example.org")
    with host_node(engine, buildkit_image, "secured", tls=named) as node:
        assert "ip address mismatch" in fail_setup(project, node, **tls_options(named)).stderr
        option = node.option(**tls_options(named), servername="builder.example.org")
        project.write({"pyproject.toml": remote_settings([option], [AMD64])})
        assert project.json("setup-builder")["ok"]


def test_wrong_authority(project: Project, tls_node: Node, certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    done = fail_setup(project, tls_node, **tls_options(certificate, ca=other.authority))
    assert "unable to get local issuer certificate" in done.stderr


def test_untrusted_client(project: Project, tls_node: Node, certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    done = fail_setup(project, tls_node, **tls_options(other, ca=certificate.authority))
    assert "alert" in done.stderr


def test_client_without_certificate(project: Project, tls_node: Node, certificate: Certificate) -> None:
    done = fail_setup(project, tls_node, ca=str(certificate.authority))
    assert "certificate required" in done.stderr


def test_client_without_tls(project: Project, tls_node: Node) -> None:
    done = fail_setup(project, tls_node)
    assert "requires TLS" in done.stderr


def test_expired_client_certificate(
    project: Project, tls_node: Node, certificate: Certificate, tmp_path: Path
) -> None:
    expired = sign(tmp_path / "old", certificate.authority, expired=True)
    done = fail_setup(project, tls_node, **tls_options(expired))
    assert "expired" in done.stderr


def test_missing_tls_files(project: Project, tls_node: Node, certificate: Certificate) -> None:
    missing = project.folder / "no-such.crt"
    option = tls_node.option(**tls_options(certificate, cert=missing))
    project.write({"pyproject.toml": remote_settings([option], [AMD64])})
    done = project.task("setup-builder", expect=2)
    assert f"node secured: cert: {missing} is not a file" in done.stderr


def test_key_is_not_shown(project: Project, tls_node: Node, certificate: Certificate) -> None:
    option = tls_node.option(**tls_options(certificate))
    project.write({"pyproject.toml": remote_settings([option], [AMD64])})
    done = project.task("setup-builder", "--json")
    secret = certificate.key.read_text(encoding="utf-8").splitlines()[1]
    assert secret not in done.stdout + done.stderr
