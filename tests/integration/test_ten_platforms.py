"""``arch-matrix`` for ten platforms: every step passes, and the steps agree."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from buildkit_tasks.platforms import Platform
from tests.conftest import TEN
from tests.support.project import Project

Json = dict[str, Any]

MATRIX = {"schema_version", "ok", "setup", "build", "verify", "run", "error"}
SETUP = {"ok", "engine", "builder", "platforms"}
SETUP_ROW = {
    "platform", "native", "node", "handler", "interpreter", "flags", "version", "runs", "message",
}  # fmt: skip
BUILD = {"ok", "digest", "outputs", "platforms", "builder", "bases", "seconds"}
VERIFY = {"ok", "subject", "digest", "platforms"}
CHECK = {"name", "ok", "expected", "actual", "path", "layer", "message"}
RUN_ROW = {
    "ok", "platform", "outcome", "exit_code", "stdout", "stderr", "seconds", "runner", "emulated",
    "emulator", "digest", "message", "command",
}  # fmt: skip


@pytest.fixture(scope="module")
def matrix(hello: Project) -> Json:
    """The report of ``arch-matrix`` for the example."""
    document: Json = hello.json("arch-matrix", "--report=matrix.xml", "--report=matrix.md", timeout=590)
    return document


def test_matrix_passes(matrix: Json) -> None:
    assert (matrix["ok"], matrix["error"]) == (True, "")
    for step in ("setup", "build", "verify"):
        assert [row["platform"] for row in matrix[step]["platforms"]] == list(TEN), step
    assert [row["platform"] for row in matrix["run"]["results"]] == list(TEN)
    assert {row["outcome"] for row in matrix["run"]["results"]} == {"passed"}


def test_document_shape(matrix: Json) -> None:
    assert set(matrix) == MATRIX
    setup, build, verify, run = (matrix[name] for name in ("setup", "build", "verify", "run"))
    assert set(setup) == SETUP
    assert set(setup["engine"]) == {"kind", "endpoint", "version", "store"}
    assert set(setup["builder"]) == {"name", "driver", "nodes", "reason"}
    assert all(set(row) == SETUP_ROW for row in setup["platforms"])
    assert set(build) == BUILD
    assert build["outputs"] == [{"type": "oci", "dest": "dist/hello-latest.tar"}]
    assert all(set(row) == {"platform", "digest", "node", "native"} for row in build["platforms"])
    assert set(verify) == VERIFY
    assert all(set(row) == {"ok", "platform", "digest", "checks"} for row in verify["platforms"])
    assert all(set(check) == CHECK for row in verify["platforms"] for check in row["checks"])
    assert set(run) == {"ok", "subject", "results"}
    assert all(set(row) == RUN_ROW for row in run["results"])


def test_native_platform_is_not_emulated(matrix: Json) -> None:
    native = _native_platform(matrix)
    setup = {row["platform"]: row for row in matrix["setup"]["platforms"]}
    run = {row["platform"]: row for row in matrix["run"]["results"]}
    assert (setup[native]["native"], setup[native]["handler"]) == (True, "")
    assert (run[native]["emulated"], run[native]["emulator"]) == (False, None)


def test_handlers_have_f_and_not_c(matrix: Json) -> None:
    emulated = [row for row in matrix["setup"]["platforms"] if not row["native"]]
    assert emulated
    for row in emulated:
        assert "F" in row["flags"], row
        assert "C" not in row["flags"], row
        assert row["version"], row


def test_digests_match_across_steps(matrix: Json) -> None:
    built = {row["platform"]: row["digest"] for row in matrix["build"]["platforms"]}
    verified = {row["platform"]: row["digest"] for row in matrix["verify"]["platforms"]}
    ran = {row["platform"]: row["digest"] for row in matrix["run"]["results"]}
    assert built == verified == ran
    assert len(set(built.values())) == len(TEN)


def test_printed_architecture(matrix: Json) -> None:
    for row in matrix["run"]["results"]:
        architecture = Platform.parse(row["platform"]).architecture
        assert row["stdout"] == f"Hello world!\nRunning in [{architecture}] architecture.\n"
        assert row["exit_code"] == 0


def test_junit_testcases(hello: Project, matrix: Json) -> None:
    assert matrix["ok"]
    suites = ET.parse(hello.folder / "matrix.xml").getroot()  # noqa: S314 - our own report
    cases = {suite.get("name"): [case.get("name") for case in suite] for suite in suites}
    assert set(cases) == {"setup", "build", "verify", "run"}
    for step, names in cases.items():
        assert [name for name in names if name in TEN] == list(TEN), step
    assert suites.get("failures") in (None, "0")


def test_tasks_one_by_one(hello: Project, matrix: Json) -> None:
    built = hello.json("build-multiarch")
    assert built["platforms"] == matrix["build"]["platforms"]  # all from the cache
    verified = hello.json("verify-arch", "--platform", ",".join(TEN))
    assert (verified["ok"], verified["digest"]) == (True, built["digest"])
    ran = hello.json("run-emulated", "dist/hello-latest.tar", "--platform=linux/arm/v7,linux/s390x")
    assert [row["outcome"] for row in ran["results"]] == ["passed", "passed"]


def test_missing_and_unexpected_platform(hello: Project, matrix: Json) -> None:
    assert matrix["ok"]
    report = hello.json("verify-arch", "--platform", ",".join((*TEN[1:], "linux/arm/v5")), expect=1)
    wrong = [row["platform"] for row in report["platforms"] if not row["ok"]]
    assert sorted(wrong) == ["linux/amd64", "linux/arm/v5"]


def _native_platform(matrix: Json) -> str:
    native = [str(row["platform"]) for row in matrix["setup"]["platforms"] if row["native"]]
    assert len(native) in (1, 2)  # an x86-64 kernel also runs linux/386 natively
    return native[0]
