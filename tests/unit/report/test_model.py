from __future__ import annotations

import json
from dataclasses import replace

import pytest

from buildkit_tasks.report.model import (
    BuiltPlatform,
    EmulatorSummary,
    MatrixReport,
    Outcome,
    PlatformSetup,
    RunReport,
    VerifyReport,
    to_document,
    to_json_value,
)
from tests.support.report_samples import (
    bad_check,
    bad_reports,
    bad_run,
    both_cpus,
    build,
    good_check,
    good_reports,
    good_run,
    matrix,
    run,
    setup,
    stopped,
    verdict,
    verify,
)


@pytest.mark.parametrize("report", good_reports(), ids=lambda report: type(report).__name__)
def test_good_report_is_ok(report: MatrixReport) -> None:
    assert report.ok is True


@pytest.mark.parametrize("report", bad_reports(), ids=lambda report: type(report).__name__)
def test_bad_report_is_not_ok(report: MatrixReport) -> None:
    assert report.ok is False


def test_one_failed_check() -> None:
    bad = verdict("linux/arm64", good_check(), bad_check(), good_check())
    assert not bad.ok
    assert not verify(verdict("linux/amd64"), bad).ok


def test_failed_check_is_not_a_warning() -> None:
    bad = replace(bad_check(), warning=True)
    warned = replace(good_check(), warning=True)
    assert verdict("linux/arm64", bad, warned).warnings == (warned,)


def test_no_platforms_is_not_ok() -> None:
    assert not VerifyReport(subject="x", digest="", platforms=()).ok
    assert not RunReport(subject="x", results=()).ok


def test_setup_of_unusable_platform() -> None:
    assert not setup(PlatformSetup(platform="linux/arm64", native=False)).ok


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.PASSED])
def test_only_passed_is_ok(outcome: Outcome) -> None:
    assert not bad_run("linux/arm64", outcome).ok


@pytest.mark.parametrize("step", ["setup", "build", "verify", "run"])
def test_matrix_without_a_step(step: str) -> None:
    without: dict[str, None] = {step: None}
    assert not replace(matrix(), **without).ok  # type: ignore[arg-type]  # one of four fields


def test_matrix_with_several_runs() -> None:
    report = replace(matrix("linux/amd64", "linux/arm/v6"), run=both_cpus())
    assert report.ok
    assert not replace(report, run=both_cpus(Outcome.ILLEGAL_INSTRUCTION)).ok
    for left_out in ("linux/amd64", "linux/arm/v6"):
        others = [result for result in both_cpus().results if result.platform != left_out]
        assert not replace(report, run=run(*others)).ok


def test_complete_matrix_with_error() -> None:
    assert not replace(matrix(), error="the state could not be saved").ok


@pytest.mark.parametrize("report", [*good_reports(), *bad_reports()])
def test_document_is_json(report: MatrixReport) -> None:
    document = to_document(report)
    assert json.loads(json.dumps(document)) == document
    assert document["ok"] is report.ok


def test_verify_keys() -> None:
    document = to_document(verify(verdict("linux/arm64", bad_check())))
    assert set(document) == {"schema_version", "ok", "subject", "digest", "platforms"}
    assert set(document["platforms"][0]) == {"platform", "digest", "ok", "checks"}
    keys = {"name", "ok", "expected", "actual", "path", "layer", "message"}
    assert set(document["platforms"][0]["checks"][0]) == keys


def test_warning_is_in_message() -> None:
    check = replace(good_check("parity"), warning=True, message="linux/arm64 lacks /a")
    document = to_document(verify(verdict("linux/arm64", check, good_check())))
    checks = document["platforms"][0]["checks"]
    assert [check["message"] for check in checks] == ["warning: linux/arm64 lacks /a", ""]
    assert (
        set(checks[0]) == set(checks[1]) == {"name", "ok", "expected", "actual", "path", "layer", "message"}
    )


def test_run_keys() -> None:
    document = to_document(run(good_run("linux/arm64")))
    assert set(document) == {"schema_version", "ok", "subject", "results"}
    keys = {"platform", "outcome", "exit_code", "stdout", "stderr", "seconds", "runner", "message"}
    assert keys | {"emulated", "emulator"} <= set(document["results"][0])
    assert set(document["results"][0]["emulator"]) == {"path", "version", "cpu"}


def test_setup_keys() -> None:
    document = to_document(setup())
    assert set(document) == {"schema_version", "ok", "engine", "builder", "platforms"}
    assert set(document["engine"]) == {"kind", "endpoint", "version", "store"}
    assert {"name", "driver", "nodes"} <= set(document["builder"])
    keys = {"platform", "native", "node", "handler", "interpreter", "flags", "version", "runs"}
    assert keys <= set(document["platforms"][0])


def test_build_keys() -> None:
    document = to_document(build())
    assert set(document) == {
        "schema_version",
        "ok",
        "digest",
        "outputs",
        "platforms",
        "builder",
        "bases",
        "seconds",
    }
    assert set(document["platforms"][0]) == {"platform", "digest"}
    built = BuiltPlatform(platform="linux/arm64", digest="sha256:1", node="b", native=True)
    assert to_json_value(built) == {
        "platform": "linux/arm64", "digest": "sha256:1", "node": "b", "native": True,
    }  # fmt: skip


def test_output_has_dest_or_ref() -> None:
    to_file, to_image = to_document(build())["outputs"]
    assert to_file == {"type": "oci", "dest": "dist/hello.tar"}
    assert to_image == {"type": "image", "ref": "hello:latest"}


def test_missing_step_is_null() -> None:
    document = to_document(stopped("the registry refused"))
    assert document["verify"] is None
    assert document["run"] is None
    assert document["build"]["platforms"]
    assert document["error"] == "the registry refused"


def test_outcome_is_its_value() -> None:
    assert to_json_value(bad_run("linux/arm64", Outcome.WRONG_ARCH))["outcome"] == "wrong-arch"


def test_native_run_has_no_emulator() -> None:
    assert to_json_value(good_run("linux/amd64"))["emulator"] is None
    assert to_json_value(EmulatorSummary(path="/q")) == {"path": "/q", "version": "", "cpu": ""}


def test_limited_is_not_a_key() -> None:
    document = to_json_value(replace(good_run("linux/arm64"), command="uname -m", limited=True))
    assert document["command"] == "uname -m"
    assert "limited" not in document
