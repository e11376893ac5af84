"""Tasks called from Python: by another task, before or after it, and from a sub-collection."""

from __future__ import annotations

import runpy
import textwrap
from pathlib import Path
from typing import Any

import pytest
from invoke.collection import Collection
from invoke.context import Context
from invoke.program import Program
from invoke.tasks import call
from invoke.tasks import task as invoke_task

import buildkit_tasks as bt
from buildkit_tasks.cli.declared_task import create_namespace, task
from buildkit_tasks.cli.invocation import TaskContext
from buildkit_tasks.cli.options import BUILD_OPTIONS, IMAGE, PLATFORM, REPORT, RUN_OPTIONS, VERIFY_OPTIONS
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.tasks import build_multiarch, verify_arch
from tests.support.environment import delete_env
from tests.support.oci import hello, write_archive

CALLS: list[TaskContext] = []


@task(IMAGE, PLATFORM, *VERIFY_OPTIONS, *RUN_OPTIONS, *BUILD_OPTIONS, REPORT)
def inspect_options(ctx: TaskContext) -> None:
    """Record this call, and return its number."""
    CALLS.append(ctx)
    ctx.result = len(CALLS)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    delete_env(monkeypatch, "INVOKE_BUILDKIT_*", "DOCKER_*", "GITHUB_*")
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    write_archive(hello(("linux/amd64", "linux/arm64")), tmp_path / "image.tar")
    return tmp_path


def run(collection: Collection, *args: str) -> int:
    """Return the exit status of ``inv`` with these arguments and tasks."""
    try:
        Program(namespace=collection).run(["inv", *args])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


SAME_VALUES = [
    ({"platform": "s390x,386"}, {"platform": ["s390x,386"]}),
    ({"platform": ("s390x", bt.Platform.parse("arm/v7"))}, {"platform": ["s390x", "linux/arm/v7"]}),
    ({"platform": bt.Platform("linux", "386")}, {"platform": ["linux/386"]}),
    ({"platform": []}, {"platform": ()}),
    ({"platform": None, "context": None, "push": None}, {"platform": (), "context": "", "push": False}),
    ({"report": Path("x.json")}, {"report": ["x.json"]}),
    ({"report": "x.json"}, {"report": ["x.json"]}),
    ({"context": Path("web"), "timeout": 2.5, "jobs": 3}, {"context": "web", "timeout": "2.5", "jobs": "3"}),
    ({"expect_exit": 0}, {"expect_exit": "0"}),
    ({"provenance": False, "sbom": True}, {"provenance": "false", "sbom": "true"}),
    ({"push": True}, {"push": True}),
    ({"allow_foreign": (each for each in "ab")}, {"allow_foreign": ["a", "b"]}),
]


@pytest.mark.parametrize(("arguments", "options"), SAME_VALUES)
def test_values_are_read_as_options(arguments: dict[str, Any], options: dict[str, Any]) -> None:
    assert inspect_options(Context(), **arguments) == 1
    assert {name: CALLS[0].options[name] for name in arguments} == options


def test_zero_overrides_setting(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.buildkit-tasks]\nexpect-exit = 3\n")
    inspect_options(Context(), expect_exit=0)
    inspect_options(Context())
    assert [ctx.settings.expect_exit for ctx in CALLS] == [0, 3]


def test_image_needs_no_name() -> None:
    inspect_options(Context(), "image.tar")
    assert CALLS[0].options["image"] in ("image.tar", ["image.tar"])


BAD_CALLS = [
    (("a", "b"), {}, "inspect_options() takes 1 arguments without a name, not 2"),
    (("a",), {"image": "b"}, "inspect_options() got several values for 'image'"),
    ((), {"platforms": "386"}, "has no option 'platforms', did you mean 'platform'?"),
    ((), {"zzz": 1}, "inspect_options() has no option 'zzz'"),
]


@pytest.mark.parametrize(("args", "arguments", "message"), BAD_CALLS)
def test_bad_call(args: tuple[str, ...], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as excinfo:
        inspect_options(Context(), *args, **arguments)
    assert message in str(excinfo.value)
    assert CALLS == []


def test_verify_report() -> None:
    report = verify_arch(Context(), "image.tar")
    assert isinstance(report, bt.VerifyReport)
    assert [each.platform for each in report.platforms] == ["linux/amd64", "linux/arm64"]
    with pytest.raises(bt.TaskFailed) as excinfo:
        verify_arch(Context(), image="image.tar", platform=["s390x"])
    assert excinfo.value.code == 1
    assert isinstance(excinfo.value.result, bt.VerifyReport)
    with pytest.raises(bt.TaskFailed) as excinfo:
        verify_arch(Context(), image="missing.tar")
    assert (excinfo.value.code, excinfo.value.result) == (2, None)


RESULT = bt.BuildResult(digest="sha256:1", outputs=(), platforms=(), builder="b", bases="", seconds=1)
PROJECT = """
    from invoke import Collection, call, task
    from buildkit_tasks import ns as images
    from buildkit_tasks.tasks import build_multiarch, verify_arch

    @task
    def own(c):
        report = build_multiarch(c, platform=["linux/arm64"])
        print("built", report.digest)
        return report

    @task(pre=[call(build_multiarch, platform="arm64")], post=[call(verify_arch, "image.tar")])
    def around(c):
        print("between")

    @task(pre=[build_multiarch, verify_arch])
    def failing(c):
        print("never printed")

    ns = Collection(own, around, failing)
    ns.add_collection(images, name="image")
"""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the platforms of each build, which only records them."""
    builds: list[list[str]] = []

    def build(_: Pipeline, request: Any, **__: object) -> bt.BuildResult:
        builds.append([str(platform) for platform in request.platforms])
        return RESULT

    monkeypatch.setattr(Pipeline, "build", build)
    Path("Dockerfile").write_text("FROM scratch\n")
    return builds


@pytest.fixture
def project(built: list[list[str]], folder: Path) -> Collection:
    assert built == []
    (folder / "tasks.py").write_text(textwrap.dedent(PROJECT))
    collection: Collection = runpy.run_path("tasks.py")["ns"]
    return collection


def test_task_calls_task(
    project: Collection, built: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project, "own") == 0
    assert "built sha256:1" in capsys.readouterr().out
    assert built == [["linux/arm64"]]


def test_before_and_after(
    project: Collection, built: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project, "around") == 0
    output = capsys.readouterr().out
    assert built == [["linux/arm64"]]
    assert output.index("built") < output.index("between") < output.index("linux/amd64")


def test_failed_task_before_stops(project: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is recorded as built here, so that verify_arch fails, and the task is not run."""
    assert run(project, "failing") == 2
    assert "never printed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["image.build-multiarch", "image.build_multiarch"])
def test_sub_collection(project: Collection, built: list[list[str]], name: str) -> None:
    assert run(project, name, "--platform=386") == 0
    assert built == [["linux/386"]]


def test_configuration_of_collection(project: Collection, built: list[list[str]]) -> None:
    """Settings of the root collection apply to tasks in a sub-collection and to calls of them."""
    project.configure({"buildkit": {"platforms": ["linux/s390x"]}})
    assert run(project, "image.build-multiarch") == 0
    assert run(project, "own") == 0
    assert built == [["linux/s390x"], ["linux/arm64"]]


def test_environment_of_call(built: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's task that is not beside ours in a collection reads the environment all the same."""
    monkeypatch.setenv("INVOKE_BUILDKIT_PLATFORMS", "linux/riscv64")

    @invoke_task
    def alone(c: Context) -> None:
        build_multiarch(c)

    assert run(Collection(alone), "alone") == 0
    assert built == [["linux/riscv64"]]


def test_own_tasks_before_ours(capsys: pytest.CaptureFixture[str]) -> None:
    @invoke_task
    def log_in(_: Context) -> None:
        print("logged in")  # noqa: T201

    @task(IMAGE)
    def check(ctx: TaskContext) -> None:
        """Print a line."""
        ctx.print_result({}, "checked")

    vars(check)["pre"] = [log_in]
    assert run(create_namespace(check), "check", "image.tar") == 0
    assert capsys.readouterr().out == "logged in\nchecked\n"


def test_results_by_task(built: list[list[str]]) -> None:
    """Invoke's own executor gets the report of each task, too."""
    from invoke.config import Config
    from invoke.executor import Executor

    results: dict[Any, Any] = Executor(create_namespace(build_multiarch, verify_arch), Config()).execute(
        ("build-multiarch", {"platform": ["386"]}), ("verify-arch", {"image": "image.tar"})
    )
    assert results[build_multiarch] is RESULT
    assert results[verify_arch].ok
    assert call(build_multiarch).task is build_multiarch
    assert built == [["linux/386"]]
