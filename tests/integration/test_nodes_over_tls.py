"""The driver remote over mutual TLS: the right certificates, and every wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.host.builder import watch_nodes
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from tests.support.engine.nodes import Node, host_node, remote_settings
from tests.support.project import CompletedCommand, Project, program
from tests.support.registry.certificates import Certificate, make_certificate, sign

AMD64 = "linux/amd64"
DOCKERFILE = 'FROM scratch\nCOPY hello /hello\nRUN ["/hello"]\n'
SOON = 15.0  # seconds: buildx itself waits 20 for a node that does not let it in, and says no reason


@dataclass(frozen=True, kw_only=True)
class Secured:
    """A node that lets in whoever has a certificate of its authority."""

    node: Node
    certificate: Certificate


@pytest.fixture(scope="module")
def secured(
    engine: Engine, buildkit_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    with host_node(engine, buildkit_image, "secured", tls=certificate) as node:
        yield Secured(node=node, certificate=certificate)


@pytest.fixture
def mine(project: Project, tmp_path: Path) -> Project:
    """A repository whose buildx has a store of its own."""
    project.write({"Dockerfile": DOCKERFILE, "hello": program(AMD64)})
    return project.with_env(BUILDX_CONFIG=str(tmp_path / "buildx"))


def material(certificate: Certificate, **other: Path) -> dict[str, str]:
    """TLS material as ``--node`` takes it."""
    files = {"ca": certificate.authority, "cert": certificate.certificate, "key": certificate.key, **other}
    return {name: str(path) for name, path in files.items()}


def refused(project: Project, node: Node, **options: str) -> CompletedCommand:
    """Set up a builder of that node, which must not be let in; nothing of the builder may be left."""
    project.write({"pyproject.toml": remote_settings([node.option(**options)], [AMD64])})
    done = project.task("setup-builder", expect=3)
    assert re.search(r"error: node secured: (the connection to )?tcp://", done.stderr)
    assert not list(Path(project.env["BUILDX_CONFIG"]).glob("instances/*"))
    assert done.seconds < SOON
    return done


def test_trusted_client_builds(mine: Project, secured: Secured) -> None:
    option = secured.node.option(**material(secured.certificate))
    mine.write({"pyproject.toml": remote_settings([option], [AMD64])})
    assert mine.json("setup-builder")["ok"]
    (row,) = mine.json("build-multiarch")["platforms"]
    assert (row["node"], row["native"]) == ("secured", True)


def test_watchdog_uses_certificates(mine: Project, secured: Secured) -> None:
    option = secured.node.option(**material(secured.certificate))
    mine.write({"pyproject.toml": remote_settings([option], [AMD64])})
    (node,) = mine.json("setup-builder")["builder"]["nodes"]
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


def test_servername(engine: Engine, buildkit_image: str, mine: Project, tmp_path: Path) -> None:
    named = make_certificate(tmp_path / "named", names="DNS:builder.example.org")
    with host_node(engine, buildkit_image, "secured", tls=named) as node:
        assert "ip address mismatch" in refused(mine, node, **material(named)).stderr
        option = node.option(**material(named), servername="builder.example.org")
        mine.write({"pyproject.toml": remote_settings([option], [AMD64])})
        assert mine.json("setup-builder")["ok"]


def test_wrong_authority(mine: Project, secured: Secured, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    done = refused(mine, secured.node, **material(secured.certificate, ca=other.authority))
    assert "unable to get local issuer certificate" in done.stderr


def test_untrusted_client(mine: Project, secured: Secured, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    done = refused(mine, secured.node, **material(other, ca=secured.certificate.authority))
    assert "alert" in done.stderr


def test_client_without_certificate(mine: Project, secured: Secured) -> None:
    done = refused(mine, secured.node, ca=str(secured.certificate.authority))
    assert "certificate required" in done.stderr


def test_a_client_without_tls_is_refused(mine: Project, secured: Secured) -> None:
    done = refused(mine, secured.node)
    assert "requires TLS" in done.stderr


def test_expired_client_certificate(mine: Project, secured: Secured, tmp_path: Path) -> None:
    old = sign(tmp_path / "old", secured.certificate.authority, days=-1)
    done = refused(mine, secured.node, **material(old))
    assert "expired" in done.stderr


def test_missing_tls_files(mine: Project, secured: Secured) -> None:
    missing = mine.folder / "no-such.crt"
    option = secured.node.option(**material(secured.certificate, cert=missing))
    mine.write({"pyproject.toml": remote_settings([option], [AMD64])})
    done = mine.task("setup-builder", expect=2)
    assert f"node secured: cert: {missing} is not a file" in done.stderr
    assert done.seconds < 10


def test_key_is_not_shown(mine: Project, secured: Secured) -> None:
    option = secured.node.option(**material(secured.certificate))
    mine.write({"pyproject.toml": remote_settings([option], [AMD64])})
    done = mine.task("setup-builder", "--json")
    secret = secured.certificate.key.read_text(encoding="utf-8").splitlines()[1]
    assert secret not in done.stdout + done.stderr
