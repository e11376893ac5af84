"""Attestations of a build, as verify-arch counts and checks them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from tests.integration.hello_image import DOCKERFILE, TWO, hello_programs
from tests.support.project import Project

# BuildKit's docs/attestations/sbom-protocol.md: a scanner writes in-toto statements into a folder.
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v0.1",
    "predicateType": "https://spdx.dev/Document",
    "predicate": {"spdxVersion": "SPDX-2.3"},
}
SCANNER = """\
FROM alpine:latest
COPY statement.json /statement.json
CMD ["sh", "-c", "cp /statement.json $BUILDKIT_SCAN_DESTINATION/image.spdx.json"]
"""
PROVENANCE = "1 attestation: provenance"


@pytest.fixture
def project(engine: Engine, project: Project) -> Project:
    assert engine.version
    return project.write({"Dockerfile": DOCKERFILE, **hello_programs()}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO)
    )


def attestation_messages(project: Project, *options: str) -> list[str]:
    """Build with these options; return what verify-arch reports of each platform's attestations."""
    project.task("build-multiarch", "-o=type=oci,dest=out.tar", *options)
    report: dict[str, Any] = project.json("verify-arch", "out.tar", "--platform", ",".join(TWO))
    assert [row["platform"] for row in report["platforms"]] == list(TWO)
    return [
        check["message"]
        for row in report["platforms"]
        for check in row["checks"]
        if check["name"] == "attestations"
    ]


def test_provenance_per_platform(project: Project, builder_options: tuple[str, ...]) -> None:
    messages = attestation_messages(project, "--provenance=mode=max", *builder_options)
    assert messages == [PROVENANCE, PROVENANCE]


def test_no_attest(project: Project, builder_options: tuple[str, ...]) -> None:
    assert attestation_messages(project, "--no-attest", *builder_options) == []
    assert attestation_messages(project, *builder_options) == [PROVENANCE, PROVENANCE]


def test_sbom_beside_provenance(
    project: Project, builder_options: tuple[str, ...], registry_host: str
) -> None:
    scanner = f"{registry_host}/tests/scanner:1"
    project.write({"Scanner": SCANNER, "statement.json": json.dumps(STATEMENT)})
    project.task("build-multiarch", "-f", "Scanner", "--no-attest", "-t", scanner, "--push", "--no-verify")
    messages = attestation_messages(project, f"--attest=type=sbom,generator={scanner}", *builder_options)
    assert messages == ["2 attestations: SBOM (SPDX), provenance"] * 2


def test_unreachable_scanner(project: Project, builder_options: tuple[str, ...]) -> None:
    unreachable = "--attest=type=sbom,generator=127.0.0.1:1/docker/buildkit-syft-scanner:stable-1"
    failed = project.task(
        "build-multiarch", unreachable, "-o=type=oci,dest=out.tar", *builder_options, expect=1
    )
    assert "try: name a scanner that can be pulled by --attest type=sbom,generator=IMAGE" in failed.stderr
    assert not (project.folder / "out.tar").exists()


def test_no_attest_with_attestation(project: Project) -> None:
    refused = project.json("build-multiarch", "--no-attest", "--provenance=mode=max", expect=2)
    assert "--no-attest contradicts --provenance" in refused["error"]
