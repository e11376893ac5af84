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
    bad_run,
    both_cpus,
    build,
    every_bad_report,
    every_good_report,
    good_check,
    good_run,
    matrix,
    run,
    setup,
    stopped,
    verdict,
    verify,
)


@pytest.mark.parametrize("report", every_good_report(), ids=lambda report: type(report).__name__)
def test_a_report_whose_parts_all_hold_is_ok(report: MatrixReport) -> None:
    assert report.ok is True


@pytest.mark.parametrize("report", every_bad_report(), ids=lambda report: type(report).__name__)
def test_a_report_with_one_part_that_does_not_hold_is_not_ok(report: MatrixReport) -> None:
    assert report.ok is False


def test_one_failing_check_among_good_ones_fails_its_platform_and_its_image() -> None:
    bad = verdict("linux/arm64", good_check(), bad_check(), good_check())
    assert not bad.ok
    assert not verify(verdict("linux/amd64"), bad).ok


def test_an_image_in_which_no_platform_was_looked_at_is_not_verified() -> None:
    assert not VerifyReport(subject="x", digest="", platforms=()).ok
    assert not RunReport(subject="x", results=()).ok


def test_a_platform_that_does_not_run_makes_the_setup_not_ready() -> None:
    assert not setup(PlatformSetup(platform="linux/arm64", native=False)).ok


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.PASSED])
def test_no_outcome_but_passed_is_ok(outcome: Outcome) -> None:
    assert not bad_run("linux/arm64", outcome).ok


@pytest.mark.parametrize("step", ["setup", "build", "verify", "run"])
def test_a_line_without_one_of_its_steps_does_not_hold(step: str) -> None:
    without: dict[str, None] = {step: None}
    assert not replace(matrix(), **without).ok  # type: ignore[arg-type]  # one of four fields


def test_several_runs_of_each_platform_are_one_set_of_platforms() -> None:
    line = replace(matrix("linux/amd64", "linux/arm/v6"), run=both_cpus())
    assert line.ok
    assert not replace(line, run=both_cpus(Outcome.ILLEGAL_INSTRUCTION)).ok
    for left_out in ("linux/amd64", "linux/arm/v6"):
        some = [result for result in both_cpus().results if result.platform != left_out]
        assert not replace(line, run=run(*some)).ok


def test_a_line_that_reached_its_end_with_an_error_does_not_hold() -> None:
    assert not replace(matrix(), error="the state could not be saved").ok


@pytest.mark.parametrize("report", [*every_good_report(), *every_bad_report()])
def test_every_document_is_plain_json_with_the_verdict_in_it(report: MatrixReport) -> None:
    made = to_document(report)
    assert json.loads(json.dumps(made)) == made
    assert made["ok"] is report.ok


def test_a_verify_document_has_the_keys_of_the_interface() -> None:
    made = to_document(verify(verdict("linux/arm64", bad_check())))
    assert set(made) == {"schema_version", "ok", "subject", "digest", "platforms"}
    assert set(made["platforms"][0]) == {"platform", "digest", "ok", "checks"}
    keys = {"name", "ok", "expected", "actual", "path", "layer", "message"}
    assert set(made["platforms"][0]["checks"][0]) == keys


def test_a_warning_has_the_same_keys_and_says_in_its_message_what_it_is() -> None:
    check = replace(good_check("parity"), warning=True, message="linux/arm64 lacks /a")
    made = to_document(verify(verdict("linux/arm64", check, good_check())))["platforms"][0]["checks"]
    assert [each["message"] for each in made] == ["warning: linux/arm64 lacks /a", ""]
    assert set(made[0]) == set(made[1]) == {"name", "ok", "expected", "actual", "path", "layer", "message"}


def test_a_run_document_has_the_keys_of_the_interface() -> None:
    made = to_document(run(good_run("linux/arm64")))
    assert set(made) == {"schema_version", "ok", "subject", "results"}
    keys = {"platform", "outcome", "exit_code", "stdout", "stderr", "seconds", "runner", "message"}
    assert keys | {"emulated", "emulator"} <= set(made["results"][0])
    assert set(made["results"][0]["emulator"]) == {"path", "version", "cpu"}


def test_a_setup_document_has_the_keys_of_the_interface() -> None:
    made = to_document(setup())
    assert set(made) == {"schema_version", "ok", "engine", "builder", "platforms"}
    assert set(made["engine"]) == {"kind", "endpoint", "version", "store"}
    assert {"name", "driver", "nodes"} <= set(made["builder"])
    keys = {"platform", "native", "node", "handler", "interpreter", "flags", "version", "runs"}
    assert keys <= set(made["platforms"][0])


def test_a_build_document_has_the_keys_of_the_interface() -> None:
    made = to_document(build())
    assert set(made) == {
        "schema_version",
        "ok",
        "digest",
        "outputs",
        "platforms",
        "builder",
        "bases",
        "seconds",
    }
    assert set(made["platforms"][0]) == {"platform", "digest"}
    built = BuiltPlatform(platform="linux/arm64", digest="sha256:1", node="b", native=True)
    assert to_json_value(built) == {
        "platform": "linux/arm64", "digest": "sha256:1", "node": "b", "native": True,
    }  # fmt: skip


def test_an_output_has_either_a_destination_or_a_reference() -> None:
    to_file, to_image = to_document(build())["outputs"]
    assert to_file == {"type": "oci", "dest": "dist/hello.tar"}
    assert to_image == {"type": "image", "ref": "hello:latest"}


def test_a_step_that_was_not_reached_is_null_and_the_error_is_told() -> None:
    made = to_document(stopped("the registry refused"))
    assert made["verify"] is None
    assert made["run"] is None
    assert made["build"]["platforms"]
    assert made["error"] == "the registry refused"


def test_an_outcome_is_written_as_its_word() -> None:
    assert to_json_value(bad_run("linux/arm64", Outcome.WRONG_ARCH))["outcome"] == "wrong-arch"


def test_a_native_run_has_a_null_emulator() -> None:
    assert to_json_value(good_run("linux/amd64"))["emulator"] is None
    assert to_json_value(EmulatorSummary(path="/q")) == {"path": "/q", "version": "", "cpu": ""}


def test_a_run_says_what_was_run_and_keeps_its_limit_to_its_message() -> None:
    made = to_json_value(replace(good_run("linux/arm64"), command="uname -m", limited=True))
    assert made["command"] == "uname -m"
    assert "limited" not in made
