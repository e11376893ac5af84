"""Attestations that a build makes are counted and checked by verify-arch; --no-attest leaves none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.project import Project, program

TWO = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
CMD ["/hello"]
"""
# BuildKit's docs/attestations/sbom-protocol.md: a scanner writes in-toto statements into a folder.
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v0.1",
    "predicateType": "https://spdx.dev/Document",
    "predicate": {"spdxVersion": "SPDX-2.3"},
}
SCANNER = """\
FROM alpine:latest
COPY statement.json /statement.json
CMD ["sh", "-c", "cp /statement.json $BUILDKIT_SCAN_DESTINATION/tiny.spdx.json"]
"""
PROVENANCE = "1 attestation: provenance"


@pytest.fixture
def tiny(engine: Engine, project: Project) -> Project:
    assert engine.version
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
    return project.write({"Dockerfile": DOCKERFILE, **files}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO)
    )


def attested(project: Project, *options: str) -> list[str]:
    """What verify-arch says of the attestations of each platform that is built with these options."""
    project.task("build-multiarch", "-o=type=oci,dest=out.tar", *options)
    report: dict[str, Any] = project.json("verify-arch", "out.tar", "--platform", ",".join(TWO))
    assert [row["platform"] for row in report["platforms"]] == list(TWO)
    return [
        check["message"]
        for row in report["platforms"]
        for check in row["checks"]
        if check["name"] == "attestations"
    ]


def test_provenance_per_platform(tiny: Project, builders: tuple[str, ...]) -> None:
    found = attested(tiny, "--provenance=mode=max", *builders)
    assert found == [PROVENANCE, PROVENANCE]


def test_no_attest(tiny: Project, builders: tuple[str, ...]) -> None:
    assert attested(tiny, "--no-attest", *builders) == []
    assert attested(tiny, *builders) == [PROVENANCE, PROVENANCE]


def test_sbom_beside_provenance(tiny: Project, builders: tuple[str, ...], registry_host: str) -> None:
    scanner = f"{registry_host}/tests/scanner:1"
    tiny.write({"Scanner": SCANNER, "statement.json": json.dumps(STATEMENT)})
    tiny.task("build-multiarch", "-f", "Scanner", "--no-attest", "-t", scanner, "--push", "--no-verify")
    found = attested(tiny, f"--attest=type=sbom,generator={scanner}", *builders)
    assert found == ["2 attestations: SBOM (SPDX), provenance"] * 2


def test_unreachable_scanner(tiny: Project, builders: tuple[str, ...]) -> None:
    nowhere = "--attest=type=sbom,generator=127.0.0.1:1/docker/buildkit-syft-scanner:stable-1"
    failed = tiny.task("build-multiarch", nowhere, "-o=type=oci,dest=out.tar", *builders, expect=1)
    assert "try: name a scanner that can be pulled by --attest type=sbom,generator=IMAGE" in failed.stderr
    assert not (tiny.folder / "out.tar").exists()


def test_no_attest_with_attestation(tiny: Project) -> None:
    refused = tiny.json("build-multiarch", "--no-attest", "--provenance=mode=max", expect=2)
    assert "--no-attest contradicts --provenance" in refused["error"]
