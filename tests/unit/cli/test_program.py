"""The program ``buildkit-tasks``: its exit codes for usage errors and for Ctrl-C at the start."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from invoke.config import Config

from buildkit_tasks.cli.program import create_program
from buildkit_tasks.tasks import ns
from tests.support.environment import minimal_env
from tests.unit.cli.test_invocation import project_dir

__all__ = ["project_dir"]  # an autouse fixture


def run_program(*args: str) -> int:
    try:
        create_program(ns).run(["buildkit-tasks", *args])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nonsense",), "unknown task 'nonsense'"),
        (("--nonsense",), "unknown option '--nonsense'"),
        (("biuld-multiarch",), "unknown task 'biuld-multiarch', did you mean build-multiarch?"),
        (("verify-arch", "--platfrom=x"), "verify-arch has no option '--platfrom', did you mean --platform?"),
        (("--help", "verfy-arch"), "unknown task 'verfy-arch', did you mean verify-arch?"),
        (("--list", "nonsense"), "Sub-collection 'nonsense' not found!"),
        (("--list-depth=x",), "invalid literal for int()"),
        (("--print-completion-script=csh",), 'Completion for shell "csh" not supported'),
        (("--config",), "Flag <Argument: config (f)> needed value and was not given one!"),
    ],
)
def test_usage_error(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(*args) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("args", [("nonsense",), ("verify-arch", "--nonsense"), ("doctor", "--platform")])
def test_usage_error_in_json(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, is_json in ((["--json"], True), (["--json", "--complete"], False), (["--json=false"], False)):
        monkeypatch.setattr("sys.argv", ["buildkit-tasks", *flags, *args])
        assert run_program(*args) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert bool(captured.out) == is_json
        if is_json:
            document = json.loads(captured.out)
            assert (document["ok"], document["exit_code"]) == (False, 2)
            assert f"error: {document['error']}" in captured.err


@pytest.mark.parametrize("args", [(), ("--help",), ("--list",), ("--version",), ("--help", "doctor")])
def test_success(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(*args) == 0
    assert capsys.readouterr().err == ""


def test_timeout_of_verification(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        name = f"docker://127.0.0.1:{server.getsockname()[1]}/app:1"
        assert run_program("verify-arch", name, "--timeout=0.3", "--json") == 124
    (verdict,) = json.loads(capsys.readouterr().out)["platforms"]
    assert [(check["name"], check["ok"]) for check in verdict["checks"]] == [("timeout", False)]


INTERRUPTED_IMPORT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from buildkit_tasks.__main__ import main
main()
"""
INTERRUPTED_START = """
from invoke.program import Program
def interrupt(self, *args, **kwargs):
    raise KeyboardInterrupt
Program.{method} = interrupt
from buildkit_tasks.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "code",
    [
        *(INTERRUPTED_IMPORT.format(module=name) for name in ("invoke.program", "buildkit_tasks.tasks")),
        *(INTERRUPTED_START.format(method=name) for name in ("create_config", "parse_core_args", "execute")),
    ],
)
def test_interrupt_at_start(code: str) -> None:
    argv = [sys.executable, "-c", code, "doctor"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=minimal_env())
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_closed_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Config, "load_user", refuse)
    assert run_program("--list") == 0
