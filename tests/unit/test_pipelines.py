"""Check CI files, workflows and the action: they are valid YAML, and their tasks and options exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.tasks import ns
from tests.conftest import ROOT
from tests.support.workflows import parse_yaml

PIPELINES = [
    *sorted((ROOT / "examples/ci").glob("*.yml")),
    *sorted((ROOT / ".github/workflows").glob("*.yml")),
    ROOT / "action.yml",
]
ACTION = parse_yaml((ROOT / "action.yml").read_text(encoding="utf-8"))


def document(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"))


def texts(value: Any) -> Iterator[str]:
    """Yield every scalar of a document as text."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from texts(each)
    else:
        yield str(value)


def task_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the rest of the command line of each task call in a file."""
    for text in texts(document(path)):
        joined = text.replace("\\\n", " ")
        yield from re.findall(r'(?:^|[\s/])buildkit-tasks"? ([a-z]+-[a-z]+)(.*)', joined)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_pipeline_is_a_mapping(path: Path) -> None:
    assert isinstance(document(path), dict)


@pytest.mark.parametrize("path", PIPELINES[:-1], ids=lambda path: path.name)
def test_jobs_are_well_formed(path: Path) -> None:
    pipeline = document(path)
    jobs = pipeline.get("jobs", pipeline)
    assert "steps" in jobs or [job for job in jobs.values() if "steps" in job or "script" in job]
    for job in pipeline.get("jobs", {}).values():
        assert {job["needs"]} <= jobs.keys() if "needs" in job else True
        assert all(len({"uses", "run"} & step.keys()) == 1 for step in job["steps"])


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_tasks_and_options_exist(path: Path) -> None:
    for name, rest in task_lines(path):
        flags = {flag for option in ns[name].options.values() for flag in (option.name, option.short) if flag}
        used = re.findall(r"(?:^|\s)--?([a-z][a-z-]*)", rest)
        assert {flag.replace("-", "_") for flag in used} <= flags, rest


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_failed_programs_end_scripts(path: Path) -> None:
    """bash ignores the exit code of a substitution in an argument, even with -e."""
    lines = [line.strip() for text in texts(document(path)) for line in text.splitlines()]
    assert [line for line in lines if re.match(r"(echo|printf)\b.*\$\(", line)] == []


def test_pipelines_call_tasks() -> None:
    assert {name for path in PIPELINES for name, _ in task_lines(path)} >= {
        "arch-matrix",
        "build-multiarch",
        "merge-multiarch",
    }


def run_action(folder: Path, **inputs: str) -> tuple[list[str], str]:
    """Run the action's last step with a program that records its arguments; return them and the outputs."""
    program = folder / "buildkit-tasks/bin/buildkit-tasks"
    program.parent.mkdir(parents=True)
    record = shlex.quote(f"{folder}/argv")
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {record}\n", encoding="utf-8")
    program.chmod(0o755)
    (step,) = (step for step in ACTION["runs"]["steps"] if step.get("id") == "matrix")
    env = {"PLATFORMS": "", "ARGS": "", "JUNIT": "", **inputs}
    env |= {"PATH": os.environ["PATH"], "RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(folder / "output")}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, cwd=folder, check=True)
    return (folder / "argv").read_text().splitlines(), (folder / "output").read_text()


def test_action_defaults(tmp_path: Path) -> None:
    argv, output = run_action(tmp_path)
    assert argv == ["arch-matrix", "--report", f"{tmp_path}/arch-matrix.json"]
    assert output == f"report={tmp_path}/arch-matrix.json\n"


def test_action_inputs(tmp_path: Path) -> None:
    argv, _ = run_action(
        tmp_path, PLATFORMS="linux/amd64,linux/arm64", JUNIT="a b.xml", ARGS="--cpu floor --push"
    )
    assert argv[3:] == [
        "--platform", "linux/amd64,linux/arm64", "--report", "a b.xml", "--cpu", "floor", "--push"
    ]  # fmt: skip


@pytest.mark.parametrize(("requirement", "installed"), [("", "/action"), ("./x.whl", "./x.whl")])
def test_action_installs(tmp_path: Path, requirement: str, installed: str) -> None:
    """By default the action installs the package of its own checkout."""
    (step,) = (step for step in ACTION["runs"]["steps"] if step.get("name") == "Install")
    for name in ("python", "buildkit-tasks/bin/pip"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(tmp_path))}/log\n', encoding="utf-8")
        program.chmod(0o755)
    env = {"REQUIREMENT": requirement, "RUNNER_TEMP": str(tmp_path), "GITHUB_ACTION_PATH": "/action"}
    env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, cwd=tmp_path, check=True)
    _, pip = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert pip.split()[-1] == installed


def test_action_inputs_are_declared() -> None:
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == set(ACTION["inputs"])
