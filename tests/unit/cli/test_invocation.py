from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.program import Program

from buildkit_tasks.cli.declared_task import TaskFailed, create_namespace, task
from buildkit_tasks.cli.invocation import RunProgress, TaskContext
from buildkit_tasks.cli.options import BUILD_OPTIONS, IMAGE, PLATFORM, REPORT, RUN_OPTIONS, Option
from buildkit_tasks.config.settings import SmokeCheck
from buildkit_tasks.errors import BuildFailed, EngineError, SettingsError, UsageError
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.pipeline.runs import ImageRunner
from buildkit_tasks.report.model import MatrixReport, Outcome, RunReport, RunResult
from buildkit_tasks.tasks import ns
from tests.support.report_samples import bad_run, good_run

SECRET = "https://me:hunter2@example.org/x"  # noqa: S105 - nobody's
seen: list[tuple[str, dict[str, Any]]] = []


@task(IMAGE, PLATFORM, *RUN_OPTIONS, REPORT)
def look_at(ctx: TaskContext) -> None:
    """Note what it was given."""
    seen.append(("look-at", {**ctx.options}))


@task(*BUILD_OPTIONS, PLATFORM)
def make_it(ctx: TaskContext) -> None:
    """Note what it was given, and the settings that follow."""
    seen.append(
        (
            "make-it",
            {**ctx.options, "settings": ctx.pipeline.settings, "dry": ctx.pipeline.commands.dry_run},
        )
    )


@task(Option(name="kind", help="which error"), REPORT)
def fail_with(ctx: TaskContext) -> None:
    """Fail in the way that is asked for."""
    errors: dict[str, BaseException] = {
        "usage": UsageError("no good", hint="do it well"),
        "settings": SettingsError("bad key"),
        "engine": EngineError("no engine"),
        "build": BuildFailed("broken", exit_code=17),
        "secret": EngineError(f"cannot reach {SECRET}"),
        "interrupt": KeyboardInterrupt(),
        "file": PermissionError(13, "Permission denied", "/x/y"),
        "disk": OSError(28, "No space left on device", "/x/y"),
        "bug": ZeroDivisionError("a bug"),
    }
    raise errors[ctx.options["kind"]]


@task(REPORT)
def show_it(ctx: TaskContext) -> None:
    """Show a report."""
    ctx.show_report(RunReport(subject="x", results=(good_run("linux/amd64"),)))


@task(REPORT)
def show_failure(ctx: TaskContext) -> None:
    """Show a report of a run that failed."""
    ctx.show_report(RunReport(subject="x", results=(bad_run("linux/amd64"),)))


@task()
def end_it(ctx: TaskContext) -> None:
    """Ask this very process to end."""
    ctx.notify("asking")
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


OURS = create_namespace(look_at, make_it, fail_with, show_it, end_it)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository and home, and nothing of ours in the environment."""
    seen.clear()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("INVOKE_", "GITHUB_")) or name in (
            "CI",
            "DOCKER_DEFAULT_PLATFORM",
            "BUILDX_BUILDER",
        ):
            monkeypatch.delenv(name)
    return tmp_path


def inv(*words: str, tasks: Any = OURS) -> int:
    """Run Invoke's own program; gives its exit status."""
    try:
        Program(namespace=tasks, version="0").run(["inv", *words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def given(*words: str) -> dict[str, Any]:
    assert inv(*words) == 0
    ((_, options),) = seen
    return options


def test_image_is_optional() -> None:
    assert given("look-at", "oci:dist")["image"] == "oci:dist"
    seen.clear()
    assert given("look-at")["image"] == ""


@pytest.mark.parametrize(
    "words",
    [
        ("look-at", "x.tar", "--timeout", "3"),
        ("look-at", "--timeout", "3", "x.tar"),
        ("look-at", "--timeout=3", "--image", "x.tar"),
        ("look-at", "--image=x.tar", "--timeout=3"),
    ],
)
def test_image_beside_options(words: tuple[str, ...]) -> None:
    options = given(*words)
    assert (options["image"], options["timeout"]) == ("x.tar", "3")


def test_task_name_is_not_an_image() -> None:
    assert inv("look-at", "make-it") == 0
    assert [(name, options.get("image")) for name, options in seen] == [("look-at", ""), ("make-it", None)]
    seen.clear()
    assert inv("look-at", "x.tar", "make_it", "look_at", "y.tar") == 0
    assert [options.get("image") for _, options in seen] == ["x.tar", None, "y.tar"]


def test_second_positional_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("look-at", "x.tar", "y.tar") == 2
    assert "y.tar" in capsys.readouterr().err
    assert seen == []


def test_underscored_aliases() -> None:
    options = given(
        "make_it", "--build_arg", "A_B=1", "--build_arg=C_D=2", "--no_cache", "--metadata_file=m_n"
    )
    assert (options["build_arg"], options["no_cache"]) == (["A_B=1", "C_D=2"], True)
    assert options["metadata_file"] == "m_n"


def test_underscored_value_stays() -> None:
    assert given("make-it", "--tag", "make_it", "--target", "no_cache")["tag"] == ["make_it"]


def test_short_options() -> None:
    options = given("make-it", "-t", "a:1", "-t=b:2", "-f", "Other", "-o", "type=oci,dest=x", "-oout")
    assert (options["tag"], options["file"]) == (["a:1", "b:2"], "Other")
    assert options["output"] == ["type=oci,dest=x", "out"]
    seen.clear()
    assert given("look-at", "-j", "3")["jobs"] == "3"


def test_list_options() -> None:
    words = ("--platform=linux/amd64,linux/386", "--platform", "arm64", "-t", "a:1,b:2", "-t", "c:3")
    settings = given("make-it", *words)["settings"]
    assert settings.platforms == ("linux/amd64", "linux/386", "arm64")
    assert settings.tags == ("a:1", "b:2", "c:3")


def test_build_arg_keeps_commas() -> None:
    assert given("make-it", "--build-arg", "A=1,2")["settings"].build_args == ("A=1,2",)


def test_absent_option_keeps_setting(here: Path) -> None:
    (here / "pyproject.toml").write_text('[tool.buildkit-tasks]\ntags = ["mine:1"]\n', encoding="utf-8")
    settings = given("make-it")["settings"]
    assert (settings.tags, settings.is_explicit("platforms")) == (("mine:1",), False)


def test_invoke_configuration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "buildkit:\n  platforms: linux/386\n  name: theirs\n  tags: ['a:1', 'b:2']\n"
    (here / ".invoke.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("INVOKE_BUILDKIT_PLATFORMS", "linux/arm64,linux/s390x")
    settings = given("make-it")["settings"]
    assert (settings.platforms, settings.name) == (("linux/arm64", "linux/s390x"), "theirs")
    assert settings.tags == ("a:1", "b:2")


@pytest.mark.parametrize("words", [("--dry", "make-it"), ("make-it", "--dry-run"), ("make-it", "--dry_run")])
def test_dry_run_options(words: tuple[str, ...]) -> None:
    assert given(*words)["dry"] is True


def test_default_is_not_dry() -> None:
    assert given("make-it")["dry"] is False


CODES = [
    ("usage", 2),
    ("settings", 2),
    ("engine", 3),
    ("build", 17),
    ("interrupt", 130),
    ("file", 1),
    ("disk", 5),
]


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_error_exit_status(kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("fail-with", "--kind", kind) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_error_document(kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("fail-with", "--kind", kind, "--json") == code
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["exit_code"]) == (False, code)
    assert document["error"]


def test_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    inv("fail-with", "--kind", "usage")
    assert capsys.readouterr().err == "error: no good\n  try: do it well\n"


def test_os_error_names_file(capsys: pytest.CaptureFixture[str]) -> None:
    inv("fail-with", "--kind", "file")
    assert capsys.readouterr().err == "error: /x/y: Permission denied\n"


def test_debug_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("fail-with", "--kind", "engine", "--debug") == 3
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "in fail_with" in shown
    assert shown.endswith("error: no engine\n")


def test_bug_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        inv("fail-with", "--kind", "bug")


@pytest.mark.parametrize("words", [(), ("--json",), ("--debug",), ("--json", "--debug")])
def test_error_is_redacted(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    inv("fail-with", "--kind", "secret", *words)
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out
    assert "https://***@example.org/x" in shown.err
    assert "error: cannot reach" in shown.err


def test_report_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("show-it", "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["platform"] == "linux/amd64"


def test_failed_report_file_document(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr("buildkit_tasks.report.files.write_reports", full)
    assert inv("show-it", "--json", "--report", str(here / "x.json")) == 5
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_unknown_report_format(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert inv("look-at", "--report", "x.zip") == 2
    assert seen == []
    assert "x.zip" in capsys.readouterr().err


def test_dry_run_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("show-it", "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "ok": True, "dry_run": True}


@pytest.mark.parametrize(
    ("word", "named"),
    [("--nonsense", "--nonsense"), ("--target", "target"), ("--context", "context"), ("--push=yes", "yes")],
)
def test_bad_option_is_usage_error(word: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("make-it", word) == 2
    assert named in capsys.readouterr().err
    assert seen == []


def test_unknown_task_exit_status() -> None:
    assert inv("no-such-task") == 1


@pytest.mark.parametrize(
    "task", ["build-multiarch", "arch-matrix", "setup-builder", "verify-arch", "run-emulated"]
)
def test_unknown_platform_suggestion(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv(task, "--platform", "linux/arm65", tasks=ns) == 2
    assert capsys.readouterr().err.endswith("unknown platform 'linux/arm65', did you mean linux/arm64?\n")


def test_unknown_setting_names_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pyproject.toml").write_text("[tool.buildkit-tasks]\nplatfroms = []\n", encoding="utf-8")
    assert inv("doctor", tasks=ns) == 2
    shown = capsys.readouterr().err
    assert f"{here}/pyproject.toml: [tool.buildkit-tasks]: unknown key 'platfroms'" in shown
    assert "did you mean 'platforms'?" in shown


def test_common_options_and_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ns.task_names:
        assert inv("--help", name, tasks=ns) == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in ("--json", "--dry-run", "--debug"))
        task = ns[name]
        assert (task.__doc__ or "").strip()
        assert all(option.help for option in task.options.values())


def test_task_names() -> None:
    assert set(ns.task_names) == {
        "setup-builder", "build-multiarch", "verify-arch", "run-emulated", "arch-matrix", "doctor",
        "push-multiarch", "merge-multiarch",
        "remove-builder", "stop-engine",
    }  # fmt: skip


TASKS = """
from invoke import Collection, task
from buildkit_tasks.tasks import ns as theirs

@task
def mine(c, name_of="x"):
    print("mine", name_of)

ns = Collection(mine)
for each in theirs.tasks.values():
    ns.add_task(each)
"""


def real(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "tasks.py").write_text(TASKS, encoding="utf-8")
    argv = [sys.executable, "-m", "invoke", *words]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


def test_other_tasks_beside_ours(here: Path) -> None:
    done = real(here, "mine", "--name-of", "a_b", "mine")
    assert (done.returncode, done.stdout) == (0, "mine a_b\nmine x\n"), done.stderr
    assert real(here, "mine", "--name_of", "a_b").returncode == 1  # Invoke takes no underscores
    assert real(here, "mine", "--nonsense").returncode == 1


def test_program_without_tasks_file(here: Path) -> None:
    argv = [sys.executable, "-m", "buildkit_tasks", "build_multiarch", "--platform=linux/arm65", "--json"]
    done = subprocess.run(argv, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2
    assert "did you mean linux/arm64?" in done.stderr


ENDED = """
import sys
from invoke.program import Program
from tests.unit.cli.test_invocation import OURS
Program(namespace=OURS, version="0").run(["inv", "end-it", "--json"])
"""


def test_sigterm_is_an_interrupt() -> None:
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-c", ENDED]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 130, done.stderr
    expected = {"schema_version": 1, "ok": False, "error": "interrupted", "exit_code": 130}
    assert json.loads(done.stdout) == expected


class Screen(io.StringIO):
    """A terminal, as far as one can ask."""

    def isatty(self) -> bool:
        return True


@task()
def watch_it(ctx: TaskContext) -> None:
    """Note whether there is anybody to tell of runs."""
    with ctx.show_run_progress() as watch:
        seen.append(("watch-it", {"watch": watch}))


@pytest.mark.parametrize(
    ("words", "terminal", "watched"),
    [((), True, True), (("--json",), True, False), (("--dry-run",), True, False), ((), False, False)],
)
def test_live_table_on_terminal_only(
    words: tuple[str, ...], terminal: bool, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Screen() if terminal else io.StringIO())
    assert inv("watch-it", *words, tasks=create_namespace(watch_it, look_at)) == 0
    ((_, options),) = seen
    assert (options["watch"] is not None and options["watch"].live_table is not None) is watched


def test_renderers_preload_during_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = threading.Event()
    monkeypatch.setattr("buildkit_tasks.report.terminal.preload_rich", drawn.set)
    watched = RunProgress(live_table=None)
    assert not drawn.is_set()
    watched.expect_runs([])
    watched(good_run("linux/amd64"))
    assert drawn.wait(10)


def ended_with(*results: RunResult, monkeypatch: pytest.MonkeyPatch, task: str) -> int:
    """The exit status of a task whose runs ended so."""
    report = RunReport(subject="x", results=results)
    monkeypatch.setattr(ImageRunner, "run_image", lambda *_, **__: report)
    monkeypatch.setattr(Pipeline, "run_matrix", lambda *_, **__: (MatrixReport(run=report), None))
    return inv(task, tasks=ns)


PASSED = good_run("linux/amd64")
LIMITED = replace(bad_run("linux/386"), limited=True)
LATE = bad_run("linux/arm64", Outcome.TIMEOUT)
WRONG = bad_run("linux/s390x")


@pytest.mark.parametrize("task", ["run-emulated", "arch-matrix"])
@pytest.mark.parametrize(
    ("results", "code"),
    [
        ((PASSED, LIMITED, LIMITED), 5),
        ((PASSED, LATE, LATE), 124),
        ((PASSED, replace(LATE, limited=True)), 5),
        ((PASSED, WRONG), 1),
        ((LIMITED, LATE), 1),
        ((LIMITED, WRONG), 1),
        ((LATE, WRONG), 1),
        ((), 1),
    ],
)
def test_limit_and_timeout_exit_codes(
    task: str, results: tuple[RunResult, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended_with(*results, monkeypatch=monkeypatch, task=task) == code


def test_passed_runs_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended_with(PASSED, monkeypatch=monkeypatch, task="run-emulated") == 0


def test_checks_from_invoke_configuration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "buildkit:\n  check:\n  - {command: uname -m, expect-exit: 3}\n  - {expect: hello}\n"
    (here / ".invoke.yaml").write_text(text, encoding="utf-8")
    wanted = (SmokeCheck(command="uname -m", expect_exit=3), SmokeCheck(expect="hello"))
    assert given("make-it")["settings"].checks == wanted
    seen.clear()
    (here / ".invoke.yaml").unlink()
    monkeypatch.setenv("INVOKE_BUILDKIT_CHECK", "uname -m")
    assert inv("make-it") == 2


def test_report_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("show-it") == 0
    assert "linux/amd64" in capsys.readouterr().out


def test_call_from_python_returns_report() -> None:
    report = show_it(Context())
    assert isinstance(report, RunReport)
    assert report.ok


def test_call_from_python_raises_with_report() -> None:
    with pytest.raises(TaskFailed) as caught:
        show_failure(Context())
    assert caught.value.code == 1
    assert isinstance(caught.value.result, RunReport)


def test_call_from_python_refuses_unknown_option() -> None:
    with pytest.raises(TypeError, match="show_it\\(\\) has no option 'imgae'"):
        show_it(Context(), imgae="x")


def test_call_from_another_thread() -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(show_it, Context()).result().ok
