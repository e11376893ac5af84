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
from types import ModuleType
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import AmbiguousEnvVar
from invoke.program import Program

from buildkit_tasks.cli.declared_task import TaskFailed, create_namespace, task
from buildkit_tasks.cli.invocation import RunProgress, TaskContext
from buildkit_tasks.cli.options import BUILD_OPTIONS, IMAGE, PLATFORM, REPORT, RUN_OPTIONS, Option
from buildkit_tasks.config.settings import SmokeCheck
from buildkit_tasks.errors import BuildFailed, EngineError, SettingsError, UsageError
from buildkit_tasks.pipeline.doctor import Diagnosis, Finding
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.pipeline.runs import ImageRunner
from buildkit_tasks.report.model import MatrixReport, Outcome, RunReport, RunResult, VerifyReport
from buildkit_tasks.tasks import ns
from tests.support.environment import delete_env
from tests.support.report_samples import (
    bad_run,
    good_check,
    good_run,
    platform_setup,
    setup,
    verdict,
    verify,
)

SECRET = "https://me:hunter2@example.org/x"  # noqa: S105 - not a real password
calls: list[tuple[str, dict[str, Any]]] = []


@task(IMAGE, PLATFORM, *RUN_OPTIONS, REPORT)
def inspect_image(ctx: TaskContext) -> None:
    """Record the options of this call."""
    calls.append(("inspect-image", {**ctx.options}))


@task(*BUILD_OPTIONS, PLATFORM)
def build_image(ctx: TaskContext) -> None:
    """Record the options of this call and the settings that result from them."""
    calls.append(
        (
            "build-image",
            {**ctx.options, "settings": ctx.pipeline.settings, "dry": ctx.pipeline.commands.dry_run},
        )
    )


@task(Option(name="kind", help="which error"), REPORT)
def raise_error(ctx: TaskContext) -> None:
    """Raise the error that --kind names."""
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
def report_success(ctx: TaskContext) -> None:
    """Show a report of a run that passed."""
    ctx.show_report(RunReport(subject="x", results=(good_run("linux/amd64"),)))


@task(REPORT)
def report_failure(ctx: TaskContext) -> None:
    """Show a report of a run that failed."""
    ctx.show_report(RunReport(subject="x", results=(bad_run("linux/amd64"),)))


@task()
def terminate_self(ctx: TaskContext) -> None:
    """Send SIGTERM to this process."""
    ctx.notify("terminating")
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


@task()
def run_command(ctx: TaskContext) -> None:
    """Run a command that changes something, and show a report."""
    ctx.commands.run(["touch", "changed"], mutates=True)
    ctx.show_report(RunReport(subject="x", results=(good_run("linux/amd64"),)))


TEST_TASKS = create_namespace(
    inspect_image, build_image, raise_error, report_success, terminate_self, run_command
)


@pytest.fixture(autouse=True)
def project_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty repository, which is also the home, without variables that change settings."""
    calls.clear()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    delete_env(monkeypatch, "INVOKE_*", "GITHUB_*", "CI", "DOCKER_DEFAULT_PLATFORM", "BUILDX_BUILDER")
    return tmp_path


def inv(*args: str, tasks: Any = TEST_TASKS) -> int:
    """Run Invoke in this process and return its exit status."""
    try:
        Program(namespace=tasks, version="0").run(["inv", *args])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run_options(*args: str) -> dict[str, Any]:
    """Run one recording task and return its options."""
    assert inv(*args) == 0
    ((_, options),) = calls
    return options


def test_image_is_optional() -> None:
    assert run_options("inspect-image", "oci:dist")["image"] == ["oci:dist"]
    calls.clear()
    assert run_options("inspect-image")["image"] == ()


def test_several_images() -> None:
    options = run_options("inspect-image", "web", "--image", "tool", "--image=x.tar")
    assert options["image"] == ["web", "tool", "x.tar"]


@pytest.mark.parametrize(
    "args",
    [
        ("inspect-image", "x.tar", "--timeout", "3"),
        ("inspect-image", "--timeout", "3", "x.tar"),
        ("inspect-image", "--timeout=3", "--image", "x.tar"),
        ("inspect-image", "--image=x.tar", "--timeout=3"),
    ],
)
def test_image_beside_options(args: tuple[str, ...]) -> None:
    options = run_options(*args)
    assert (options["image"], options["timeout"]) == (["x.tar"], "3")


def test_task_name_is_not_an_image() -> None:
    assert inv("inspect-image", "build-image") == 0
    assert [(name, options.get("image")) for name, options in calls] == [
        ("inspect-image", ()),
        ("build-image", None),
    ]
    calls.clear()
    assert inv("inspect-image", "x.tar", "build_image", "inspect_image", "y.tar") == 0
    assert [options.get("image") for _, options in calls] == [["x.tar"], None, ["y.tar"]]


def test_second_positional_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("inspect-image", "x.tar", "y.tar") == 2
    assert capsys.readouterr().err == (
        "error: inspect-image takes one IMAGE without an option, and not 'y.tar'\n  try: --image y.tar\n"
    )
    assert calls == []


def test_underscored_aliases() -> None:
    options = run_options(
        "build_image", "--build_arg", "A_B=1", "--build_arg=C_D=2", "--no_cache", "--metadata_file=m_n"
    )
    assert (options["build_arg"], options["no_cache"]) == (["A_B=1", "C_D=2"], True)
    assert options["metadata_file"] == "m_n"


def test_underscored_value_stays() -> None:
    assert run_options("build-image", "--tag", "build_image", "--target", "no_cache")["tag"] == [
        "build_image"
    ]


def test_short_options() -> None:
    options = run_options(
        "build-image", "-t", "a:1", "-t=b:2", "-f", "Other", "-o", "type=oci,dest=x", "-oout"
    )
    assert (options["tag"], options["file"]) == (["a:1", "b:2"], "Other")
    assert options["output"] == ["type=oci,dest=x", "out"]
    calls.clear()
    assert run_options("inspect-image", "-j", "3")["jobs"] == "3"


def test_list_options() -> None:
    args = ("--platform=linux/amd64,linux/386", "--platform", "arm64", "-t", "a:1,b:2", "-t", "c:3")
    settings = run_options("build-image", *args)["settings"]
    assert settings.platforms == ("linux/amd64", "linux/386", "arm64")
    assert settings.tags == ("a:1", "b:2", "c:3")


def test_build_arg_keeps_commas() -> None:
    assert run_options("build-image", "--build-arg", "A=1,2")["settings"].build_args == ("A=1,2",)


def test_absent_option_keeps_setting(project_dir: Path) -> None:
    (project_dir / "pyproject.toml").write_text(
        '[tool.buildkit-tasks]\ntags = ["mine:1"]\n', encoding="utf-8"
    )
    settings = run_options("build-image")["settings"]
    assert (settings.tags, settings.is_explicit("platforms")) == (("mine:1",), False)


def test_invoke_configuration(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "buildkit:\n  platforms: linux/386\n  name: theirs\n  tags: ['a:1', 'b:2']\n"
    (project_dir / ".invoke.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("INVOKE_BUILDKIT_PLATFORMS", "linux/arm64,linux/s390x")
    settings = run_options("build-image")["settings"]
    assert (settings.platforms, settings.name) == (("linux/arm64", "linux/s390x"), "theirs")
    assert settings.tags == ("a:1", "b:2")


@pytest.mark.parametrize(
    "args", [("--dry", "build-image"), ("build-image", "--dry-run"), ("build-image", "--dry_run")]
)
def test_dry_run_options(args: tuple[str, ...]) -> None:
    assert run_options(*args)["dry"] is True


def test_default_is_not_dry() -> None:
    assert run_options("build-image")["dry"] is False


ERROR_CODES = [
    ("usage", 2),
    ("settings", 2),
    ("engine", 3),
    ("build", 17),
    ("interrupt", 130),
    ("file", 1),
    ("disk", 5),
]


@pytest.mark.parametrize(("kind", "code"), ERROR_CODES)
def test_error_exit_status(kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("raise-error", "--kind", kind) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("kind", "code"), ERROR_CODES)
def test_error_document(kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("raise-error", "--kind", kind, "--json") == code
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["exit_code"]) == (False, code)
    assert document["error"]


def test_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    inv("raise-error", "--kind", "usage")
    assert capsys.readouterr().err == "error: no good\n  try: do it well\n"


def test_error_in_github_actions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    inv("raise-error", "--kind", "usage", "--json")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"] == "no good\n  try: do it well"
    assert captured.err == (
        "error: no good\n  try: do it well\n::error title=buildkit-tasks::no good%0A  try: do it well\n"
    )
    inv("raise-error", "--kind", "secret")
    assert "hunter2" not in capsys.readouterr().err


def test_os_error_names_file(capsys: pytest.CaptureFixture[str]) -> None:
    inv("raise-error", "--kind", "file")
    assert capsys.readouterr().err == "error: /x/y: Permission denied\n"


@pytest.mark.parametrize("cache", ["/x", "/x/y", "/x/y/z"])
def test_os_error_in_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", cache)
    assert inv("raise-error", "--kind", "file") == 3
    error = capsys.readouterr().err
    assert error.startswith("error: the cache cannot be written: /x/y: Permission denied; set XDG_CACHE_HOME")
    assert error.endswith('try: export INVOKE_BUILDKIT_CACHE="$(mktemp -d)"\n')


def test_misnamed_section(project_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "buildkit-tasks:\n  platforms: linux/386\n"
    (project_dir / ".invoke.yaml").write_text(text, encoding="utf-8")
    assert inv("build-image") == 2
    assert "nothing reads 'buildkit-tasks': the settings are in 'buildkit'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Buildkit: {platforms: linux/386}", "nothing reads 'Buildkit': the settings are in 'buildkit'"),
        ("BUILDKIT: {name: x}\nbuildkit: {jobs: 1}", "nothing reads 'BUILDKIT'"),
        ("buildkit: {Name: x}", "unknown key 'Name', did you mean 'name'?"),
        ("build-kit: {name: x}", "nothing reads 'build-kit'"),
    ],
)
def test_ambiguous_section(
    project_dir: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (project_dir / ".invoke.yaml").write_text(text, encoding="utf-8")
    assert inv("build-image") == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: Invoke's configuration: ")
    assert message in stderr


@pytest.mark.parametrize(
    ("variable", "value", "status"), [("PLATFORMS", "linux/386", 0), ("JOBS", "3", 0), ("JOBS", "many", 2)]
)
def test_variable_over_invoke_yaml(
    project_dir: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, status: int
) -> None:
    text = "buildkit: {platforms: [linux/arm64], jobs: 1}"
    (project_dir / ".invoke.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv(f"INVOKE_BUILDKIT_{variable}", value)
    assert inv("build-image") == status
    if status == 0:
        settings = calls[0][1]["settings"]
        assert value in (str(settings.jobs), *settings.platforms)


def test_ambiguity_of_others(project_dir: Path) -> None:
    (project_dir / ".invoke.yaml").write_text("mine: {a: 1}\nMine: {a: 1}\n", encoding="utf-8")
    with pytest.raises(AmbiguousEnvVar):
        inv("build-image")


def test_debug_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("raise-error", "--kind", "engine", "--debug") == 3
    stderr = capsys.readouterr().err
    assert "Traceback (most recent call last)" in stderr
    assert "in raise_error" in stderr
    assert stderr.endswith("error: no engine\n")


def test_bug_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        inv("raise-error", "--kind", "bug")


def test_error_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    TaskContext.notify("error: bad \x1b[2J\u202e\u200b\n ::stop-commands::x\n::add-mask::y")
    assert capsys.readouterr().err == (
        "error: bad \\x1b[2J\\u202e\\u200b\n \\x3a:stop-commands::x\n\\x3a:add-mask::y\n"
    )


@pytest.mark.parametrize("args", [(), ("--json",), ("--debug",), ("--json", "--debug")])
def test_error_is_redacted(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    inv("raise-error", "--kind", "secret", *args)
    captured = capsys.readouterr()
    assert "hunter2" not in captured.out
    assert "https://***@example.org/x" in captured.err
    assert "error: cannot reach" in captured.err


def test_report_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("report-success", "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["platform"] == "linux/amd64"


@pytest.mark.parametrize("json_output", [(), ("--json",)])
@pytest.mark.parametrize(
    ("task_name", "status"), [("report-success", 0), ("report-failure", 1), ("raise-error", 3)]
)
def test_closed_output(
    project_dir: Path, monkeypatch: pytest.MonkeyPatch, task_name: str, status: int, json_output: tuple[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    kind = ("--kind", "engine") if task_name == "raise-error" else ()
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        tasks = create_namespace(report_success, report_failure, raise_error)
        assert inv(task_name, *kind, "--report=report.xml", *json_output, tasks=tasks) == status
        monkeypatch.undo()
    assert (project_dir / "report.xml").exists() is (status != 3)


@pytest.mark.parametrize("json_output", [(), ("--json",)])
def test_full_output(monkeypatch: pytest.MonkeyPatch, json_output: tuple[str]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert inv("report-success", *json_output) == 5
        monkeypatch.undo()


def test_failed_report_file_document(
    project_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr("buildkit_tasks.report.files.write_reports", full)
    assert inv("report-success", "--json", "--report", str(project_dir / "x.json")) == 5
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_unknown_report_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("inspect-image", "--report", "x.zip") == 2
    assert calls == []
    assert "x.zip" in capsys.readouterr().err


def test_dry_run_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("report-success", "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "ok": True, "dry_run": True}


def test_commands_of_dry_run_beside_document(project_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("run-command", "--json", "--dry-run") == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"schema_version": 1, "ok": True, "dry_run": True}
    assert output.err == "touch changed\n"
    assert not (project_dir / "changed").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [("--nonsense", "--nonsense"), ("--target", "target"), ("--context", "context"), ("--push=yes", "yes")],
)
def test_bad_option_is_usage_error(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("build-image", option) == 2
    assert message in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("no-such-task",), "unknown task 'no-such-task'\n  try: "),
        (("biuld_image",), "unknown task 'biuld_image', did you mean build-image?\n  try: "),
        (("build-image", "inspct-image"), "unknown task 'inspct-image', did you mean inspect-image?\n"),
        (
            ("build-image", "--platfrom", "x"),
            "build-image has no option '--platfrom', did you mean --platform?",
        ),
        (("build-image", "--kind=x"), "build-image has no option '--kind'; it is an option of raise-error\n"),
        (("--platform=x", "build-image"), "--platform is an option of a task: it comes after the name"),
        (("--lst",), "unknown option '--lst', did you mean --list?\n"),
        (("build-image", "nowhere"), "build-image takes options only, and not 'nowhere'\n"),
    ],
)
def test_unknown_token(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv(*args) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert calls == []


def test_context_as_argument(
    project_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["inv"])
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    (project_dir / "a b").mkdir()
    assert inv("build-image", "a b") == 2
    assert capsys.readouterr().err.endswith("\n  try: inv build-image --context 'a b'\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("build-image", "--tag"), "--tag needs a value, e.g. -t registry.example.org/app:1"),
        (("build-image", "-t", "--push"), "--tag needs a value, e.g. -t registry.example.org/app:1"),
        (
            ("build-image", "--platform", ""),
            "--platform needs a value, e.g. --platform linux/amd64,linux/arm64",
        ),
        (
            ("build-image", "--platform= , "),
            "--platform needs a value, e.g. --platform linux/amd64,linux/arm64",
        ),
        (("build-image", "--context="), "--context needs a value, e.g. --context ."),
        (("inspect-image", "--timeout=3", "--timeout"), "--timeout needs a value, e.g. --timeout 60"),
        (("inspect-image", ""), "IMAGE is empty\n  try: --image oci-archive:dist/app.tar"),
    ],
)
def test_missing_value(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv(*args) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert calls == []


def test_last_value_wins() -> None:
    assert run_options("inspect-image", "--timeout=3", "--timeout", "4")["timeout"] == "4"


@pytest.mark.parametrize(("value", "json_output"), [("true", True), ("False", False)])
def test_value_of_flag(value: str, json_output: bool) -> None:
    options = run_options("inspect-image", f"--json={value}", "x.tar")
    assert (options["json"], options["image"]) == (json_output, ["x.tar"])


def test_every_value_has_an_example() -> None:
    options = [option for each in ns.tasks.values() for option in each.options.values()]
    assert {option.flag for option in options if option.default is not False and not option.example} == set()


@pytest.mark.parametrize(
    "task", ["build-multiarch", "arch-matrix", "setup-builder", "verify-arch", "run-emulated"]
)
def test_unknown_platform_suggestion(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inv(task, "--platform", "linux/arm65", tasks=ns) == 2
    assert capsys.readouterr().err.endswith("unknown platform 'linux/arm65', did you mean linux/arm64?\n")


def test_unknown_setting_names_file(project_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project_dir / "pyproject.toml").write_text("[tool.buildkit-tasks]\nplatfroms = []\n", encoding="utf-8")
    assert inv("doctor", tasks=ns) == 2
    stderr = capsys.readouterr().err
    assert f"{project_dir}/pyproject.toml: [tool.buildkit-tasks]: unknown key 'platfroms'" in stderr
    assert "did you mean 'platforms'?" in stderr


def test_common_options_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ns.task_names:
        assert inv("--help", name, tasks=ns) == 0
        stdout = capsys.readouterr().out
        assert all(option in stdout for option in ("--json", "--dry-run", "--debug"))
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
from buildkit_tasks.tasks import ns as package_tasks

@task
def mine(c, name_of="x"):
    print("mine", name_of)

ns = Collection(mine)
for each in package_tasks.tasks.values():
    ns.add_task(each)
"""


def run_invoke(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (folder / "tasks.py").write_text(TASKS, encoding="utf-8")
    argv = [sys.executable, "-m", "invoke", *args]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


def test_other_tasks_beside_ours(project_dir: Path) -> None:
    process = run_invoke(project_dir, "mine", "--name-of", "a_b", "mine")
    assert (process.returncode, process.stdout) == (0, "mine a_b\nmine x\n"), process.stderr
    assert run_invoke(project_dir, "mine", "--name_of", "a_b").returncode == 1  # Invoke takes no underscores
    assert run_invoke(project_dir, "mine", "--nonsense").returncode == 1


def test_program_without_tasks_file(project_dir: Path) -> None:
    argv = [sys.executable, "-m", "buildkit_tasks", "build_multiarch", "--platform=linux/arm65", "--json"]
    process = subprocess.run(argv, cwd=project_dir, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert json.loads(process.stdout)["exit_code"] == 2
    assert "did you mean linux/arm64?" in process.stderr


SIGTERM_PROGRAM = """
import sys
from invoke.program import Program
from tests.unit.cli.test_invocation import TEST_TASKS
Program(namespace=TEST_TASKS, version="0").run(["inv", "terminate-self", "--json"])
"""


def test_sigterm_is_an_interrupt() -> None:
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-c", SIGTERM_PROGRAM]
    process = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False, timeout=30)
    assert process.returncode == 130, process.stderr
    expected = {"schema_version": 1, "ok": False, "error": "interrupted", "exit_code": 130}
    assert json.loads(process.stdout) == expected


def test_handler_of_sigterm_is_restored() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ours = signal.getsignal(signal.SIGTERM)
        assert inv("report-success") == 0
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


class FakeTerminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@task()
def watch_runs(ctx: TaskContext) -> None:
    """Record the observer of runs."""
    with ctx.show_run_progress() as watch:
        calls.append(("watch-runs", {"watch": watch}))


@pytest.mark.parametrize(
    ("args", "is_terminal", "has_table"),
    [((), True, True), (("--json",), True, False), (("--dry-run",), True, False), ((), False, False)],
)
def test_live_table_on_terminal_only(
    args: tuple[str, ...], is_terminal: bool, has_table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", FakeTerminal() if is_terminal else io.StringIO())
    assert inv("watch-runs", *args, tasks=create_namespace(watch_runs, inspect_image)) == 0
    ((_, options),) = calls
    assert (options["watch"] is not None and options["watch"].live_table is not None) is has_table


def test_renderers_preload_during_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded = threading.Event()
    monkeypatch.setattr("buildkit_tasks.report.terminal.preload_rich", preloaded.set)
    progress = RunProgress(live_table=None)
    assert not preloaded.is_set()
    progress.expect_runs([])
    progress(good_run("linux/amd64"))
    assert preloaded.wait(120)


def exit_code_of_runs(*results: RunResult, monkeypatch: pytest.MonkeyPatch, task: str) -> int:
    """Return the exit status of a task whose runs have these results."""
    report = RunReport(subject="x", results=results)
    monkeypatch.setattr(ImageRunner, "run_image", lambda *_, **__: report)
    monkeypatch.setattr(Pipeline, "run_matrix", lambda *_, **__: (MatrixReport(run=report), None))
    return inv(task, tasks=ns)


PASSED = good_run("linux/amd64")
LIMITED = replace(bad_run("linux/386"), limited=True)
TIMED_OUT = bad_run("linux/arm64", Outcome.TIMEOUT)
WRONG = bad_run("linux/s390x")


@pytest.mark.parametrize("task", ["run-emulated", "arch-matrix"])
@pytest.mark.parametrize(
    ("results", "code"),
    [
        ((PASSED, LIMITED, LIMITED), 5),
        ((PASSED, TIMED_OUT, TIMED_OUT), 124),
        ((PASSED, replace(TIMED_OUT, limited=True)), 5),
        ((PASSED, WRONG), 1),
        ((LIMITED, TIMED_OUT), 1),
        ((LIMITED, WRONG), 1),
        ((TIMED_OUT, WRONG), 1),
        ((), 1),
    ],
)
def test_limit_and_timeout_exit_codes(
    task: str, results: tuple[RunResult, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code_of_runs(*results, monkeypatch=monkeypatch, task=task) == code


def test_passed_runs_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code_of_runs(PASSED, monkeypatch=monkeypatch, task="run-emulated") == 0


def test_failed_setup_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = replace(platform_setup("linux/arm64"), runs=False)
    monkeypatch.setattr(Pipeline, "setup", lambda *_, **__: setup(failed))
    assert inv("setup-builder", tasks=ns) == 3


def test_keep_state_needs_recreate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Pipeline, "setup", lambda *_, **__: setup(platform_setup("linux/arm64")))
    assert inv("setup-builder", "--keep-state", tasks=ns) == 2
    assert "--keep-state applies to a builder that is recreated" in capsys.readouterr().err
    assert inv("setup-builder", "--keep-state", "--recreate", tasks=ns) == 0


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 3)])
def test_exit_status_of_diagnosis(monkeypatch: pytest.MonkeyPatch, ok: bool, code: int) -> None:
    diagnosis = Diagnosis(findings=(Finding(name="engine", ok=ok, message="it answers"),))
    monkeypatch.setattr("buildkit_tasks.pipeline.doctor.diagnose_environment", lambda _: diagnosis)
    assert inv("doctor", tasks=ns) == code


@pytest.mark.parametrize(
    ("args", "expected"),
    [((), ()), (("--platform=linux/arm64",), ("linux/arm64",)), (("--for=linux/386",), ())],
)
def test_only_named_platforms_are_required(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    required: list[tuple[str, ...]] = []

    def verify_image(_: Pipeline, __: str, platforms: Any, ___: Any) -> VerifyReport:
        required.append(tuple(map(str, platforms)))
        return verify(verdict("linux/arm64", good_check()))

    monkeypatch.setattr(Pipeline, "verify_image", verify_image)
    assert inv("verify-arch", "x.tar", *args, tasks=ns) == 0
    assert required == [expected]


def test_checks_from_invoke_configuration(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "buildkit:\n  check:\n  - {command: uname -m, expect-exit: 3}\n  - {expect: hello}\n"
    (project_dir / ".invoke.yaml").write_text(text, encoding="utf-8")
    checks = (SmokeCheck(command="uname -m", expect_exit=3), SmokeCheck(expect="hello"))
    assert run_options("build-image")["settings"].checks == checks
    calls.clear()
    (project_dir / ".invoke.yaml").unlink()
    monkeypatch.setenv("INVOKE_BUILDKIT_CHECK", "uname -m")
    assert inv("build-image") == 2


def test_report_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("report-success") == 0
    assert "linux/amd64" in capsys.readouterr().out


def test_call_from_python_returns_report() -> None:
    report = report_success(Context())
    assert isinstance(report, RunReport)
    assert report.ok


def test_call_from_python_raises_with_report() -> None:
    with pytest.raises(TaskFailed) as excinfo:
        report_failure(Context())
    assert excinfo.value.code == 1
    assert isinstance(excinfo.value.result, RunReport)


def test_call_from_python_refuses_unknown_option() -> None:
    with pytest.raises(TypeError, match="report_success\\(\\) has no option 'imgae'"):
        report_success(Context(), imgae="x")


def test_call_from_another_thread() -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(report_success, Context()).result().ok


@task()
def print_path(ctx: TaskContext) -> None:
    """Print a name that is not UTF-8, as a result and in a command."""
    ctx.commands.run(["cat", os.fsdecode(b"caf\xe9")], mutates=True)
    ctx.print_result({"ok": True}, os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", b"caf\xe9"), ("ascii", b"caf\xe9"), ("utf-16-le", "caf\\udce9".encode("utf-16-le"))],
)
def test_name_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch, encoding: str, name: bytes) -> None:
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding=encoding))
    assert inv("print-path", "--dry-run", tasks=create_namespace(print_path, inspect_image)) == 0
    assert stdout.getvalue().count(name) == 2


def help_of(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the options in the help of a task, with their values."""
    monkeypatch.setattr("invoke.program.pty_size", lambda: (1000, 24))
    assert inv("--help", name, tasks=ns) == 0
    lines = capsys.readouterr().out.partition("Options:\n")[2].splitlines()
    return [line.strip().partition("   ")[0] for line in lines if line.strip()]


def test_values_in_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, each in ns.tasks.items():
        specs = help_of(name, capsys, monkeypatch)
        for option in each.options.values():
            (spec,) = (
                spec for spec in specs if option.flag in [part.partition("=")[0] for part in spec.split(", ")]
            )
            assert spec.endswith("=STRING") is (option.default is not False), spec
            assert (f"[{option.flag_name.upper()}]" in spec) is option.positional


def test_help_of_one_task(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    specs = help_of("verify-arch", capsys, monkeypatch)
    assert specs[0] == "[IMAGE], --image=STRING"
    assert "--for=STRING" in specs
    assert "-t STRING, --tag=STRING" in help_of("build-multiarch", capsys, monkeypatch)
