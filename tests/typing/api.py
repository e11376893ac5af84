"""The types of the public API, checked by mypy and pyright; nothing here is run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from invoke.collection import Collection

import buildkit_tasks as bt
from buildkit_tasks import ns


def check_build() -> None:
    result = bt.build(
        "examples/hello",
        platforms=["linux/arm64", bt.Platform("linux", "386")],
        tags="hello:latest",
        outputs=("type=oci,dest=x.tar",),
        push=True,
        build_args=["A=1"],
        no_cache=True,
        notify=print,
    )
    assert_type(result, bt.BuildResult)
    assert_type(result.ok, bool)
    assert_type(result.seconds, float)
    assert_type(result.platforms, tuple[bt.BuiltPlatform, ...])
    assert_type(result.pushed, bt.PushResult | None)
    bt.build(Path("examples/hello"), image="web", settings=bt.load_settings())
    bt.build(typo=True)  # type: ignore[call-arg]
    bt.build(no_cache="yes")  # type: ignore[arg-type]


def check_verify() -> None:
    report = bt.verify("oci:dist", platforms="linux/arm64,linux/386", hosts=bt.Platform("linux", "amd64"))
    assert_type(report, bt.VerifyReport)
    assert_type(report.platforms[0], bt.PlatformVerdict)
    assert_type(report.platforms[0].checks, tuple[bt.Check, ...])
    bt.verify("x.tar", ["linux/arm64"])  # type: ignore[call-arg]


def check_run(results: list[bt.RunResult]) -> None:
    report = bt.run(Path("x.tar"), command="uname -m", cpu="floor", timeout=5, on_result=results.append)
    assert_type(report, bt.RunReport)
    assert_type(report.results, tuple[bt.RunResult, ...])
    assert_type(report.results[0].outcome, bt.Outcome)
    assert_type(report.results[0].emulator, bt.EmulatorSummary | None)


def check_push(notify: bt.Notify) -> None:
    result = bt.push("x.tar", tags=["example.org/hello:1"], verify_first=False, notify=notify)
    assert_type(result, bt.PushResult)
    assert_type(result.tags, tuple[bt.NamedTag, ...])


def check_pipeline() -> None:
    pipeline = bt.Pipeline(settings=bt.load_settings({"platforms": ["linux/arm64"]}), notify=print)
    assert_type(pipeline.settings, bt.Settings)
    assert_type(pipeline.platforms, tuple[bt.Platform, ...])
    assert_type(pipeline.setup(), bt.SetupReport)
    assert_type(bt.Settings(checks=(bt.SmokeCheck(command="true"),)).checks, tuple[bt.SmokeCheck, ...])


def check_errors() -> int:
    try:
        bt.verify()
    except bt.RegistryError as error:
        assert_type(error.message, str)
        assert_type(error.hint, str | None)
        return error.exit_code
    except (bt.UsageError, bt.LimitExceeded) as error:
        assert_type(error, bt.UsageError | bt.LimitExceeded)
    return 0


def check_tasks(error: bt.TaskFailed) -> None:
    assert_type(ns, Collection)
    assert_type(error.result, object)
    assert_type(bt.__version__, str)
