"""Completion of the shells: what ``--complete`` prints for the beginning of a command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = """
from invoke import task
from buildkit_tasks.tasks import ns

@task
def mine(c, platform_name="x"):
    pass

ns.add_task(mine)
"""
PROGRAMS = {"inv": "invoke", "buildkit-tasks": "buildkit_tasks"}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASKS, encoding="utf-8")
    return tmp_path


def start(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Start a program by its name: Invoke removes that from the line to complete."""
    main = "from invoke.main import program; program.run()"
    if program != "inv":
        main = "from buildkit_tasks.__main__ import main; main()"
    code = f"import sys; sys.argv[0] = {program!r}; {main}"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


def complete(program: str, *line: str) -> set[str]:
    """Return the candidates that begin as the last word: the shell leaves out the others."""
    done = start(program, "--complete", "--", program, *line)
    assert (done.returncode, done.stderr) == (0, "")
    return {each for each in done.stdout.split() if each.startswith(line[-1])}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        (("verify-arch", "--pl"), {"--platform"}),
        (("verify-arch", "--p"), {"--parity", "--platform"}),
        (("verify-arch", "x.tar", "--fo"), {"--for", "--for-nodes"}),
        (("build-multiarch", "-t", "a:1", "--no-at"), {"--no-attest"}),
        (("verify_arch", "--pl"), {"--platform"}),
        (("doctor", "verify-arch", "--pl"), {"--platform"}),
        (("verify-arch", "--nonsense", "--pl"), {"--platform"}),
        (("verif",), {"verify-arch"}),
        (("--li",), {"--list", "--list-depth", "--list-format"}),
        (("verify-arch", "--platform"), set()),
    ],
)
def test_half_a_word(program: str, line: tuple[str, ...], candidates: set[str]) -> None:
    assert complete(program, *line) == candidates


@pytest.mark.parametrize("program", PROGRAMS)
def test_single_dash(program: str) -> None:
    assert complete(program, "run-emulated", "-") >= {"-j", "--jobs", "--platform", "--json"}


def test_other_task() -> None:
    assert complete("inv", "mine", "--pl") == {"--platform-name"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_script_of_bash(project: Path) -> None:
    """Let bash source the script and complete half an option, as its Tab key does."""
    script = start("buildkit-tasks", "--print-completion-script", "bash").stdout
    (project / "complete.sh").write_text(script, encoding="utf-8")
    (project / "buildkit-tasks").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c \"import sys; sys.argv[0] = 'buildkit-tasks';"
        ' from buildkit_tasks.__main__ import main; main()" "$@"\n',
        encoding="utf-8",
    )
    (project / "buildkit-tasks").chmod(0o755)
    commands = (
        "source ./complete.sh; PATH=$PWD:$PATH; COMP_WORDS=(buildkit-tasks verify-arch --pl); COMP_CWORD=2; "
        "function=$(complete -p buildkit-tasks | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        "$function buildkit-tasks --pl verify-arch; echo ${COMPREPLY[*]}"
    )
    done = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("--platform\n", "")
