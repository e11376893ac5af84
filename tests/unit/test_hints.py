"""Hints name the program that was typed, and every command in one can be pasted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from buildkit_tasks.cli.typed_program import record_typed_program
from buildkit_tasks.errors import UsageError
from buildkit_tasks.hints import (
    DockerClient,
    TypedProgram,
    find_typed_command,
    set_docker_client,
    set_typed_program,
    translate_commands,
)
from buildkit_tasks.host.engine.daemon import ClientTools, describe_engine
from tests.support.scripted import Scripted

INV = TypedProgram(argv=("inv",), task_names={"setup-builder": "setup-builder", "doctor": "env.doctor"})


@pytest.fixture(autouse=True)
def no_typed_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """PATH has one folder, with the package's own program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    add_program(tmp_path / "buildkit-tasks")
    return tmp_path


def add_program(path: Path) -> str:
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def start_as(monkeypatch: pytest.MonkeyPatch, *argv: str, module: str = "") -> None:
    """Let this process look as if it had been started with ``argv``, or with ``python -m module``."""
    main = ModuleType("__main__")
    main.__spec__ = SimpleNamespace(name=module) if module else None  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [*argv])


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("inv setup-builder --recreate", "inv setup-builder --recreate"),
        ("inv doctor, or inv --list", "inv env.doctor, or inv --list"),
        ("inv verify-arch x.tar", "buildkit-tasks verify-arch x.tar"),
        ("su -c 'inv setup-builder'", "su -c 'inv setup-builder'"),
        ("use letters", "use letters"),
    ],
)
def test_task_of_typed_program(hint: str, expected: str) -> None:
    set_typed_program(INV)
    assert str(UsageError("no", hint=hint)) == f"no\n  try: {expected}"


def test_translating_twice() -> None:
    set_typed_program(INV)
    once = translate_commands("inv doctor")
    assert translate_commands(once) == once


def test_without_invoke() -> None:
    assert translate_commands("inv doctor") == "buildkit-tasks doctor"


def test_without_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert translate_commands("inv doctor") == f"{sys.executable} -m buildkit_tasks doctor"


@pytest.mark.parametrize(
    ("user", "expected"),
    [(0, "{inv} setup-builder"), (1000, "sudo {path} setup-builder")],
)
def test_sudo(no_typed_program: Path, monkeypatch: pytest.MonkeyPatch, user: int, expected: str) -> None:
    path = add_program(no_typed_program / "inv")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    set_typed_program(INV)
    assert translate_commands("sudo inv setup-builder") == expected.format(inv="inv", path=path)


def test_program_in_path(no_typed_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(monkeypatch, add_program(no_typed_program / "invoke"))
    assert find_typed_command() == ("invoke",)


def test_program_outside_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv").mkdir()
    path = add_program(tmp_path / "venv" / "inv")
    start_as(monkeypatch, path)
    assert find_typed_command() == (path,)


def test_python_module(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(monkeypatch, "/x/buildkit_tasks/__main__.py", module="buildkit_tasks.__main__")
    assert find_typed_command() == (sys.executable, "-m", "buildkit_tasks")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("image.doctor", "image.doctor"), ("ci.doctor", "ci.doctor"), ("other", "image.doctor")],
)
def test_name_in_collection_of_typed_task(monkeypatch: pytest.MonkeyPatch, typed: str, expected: str) -> None:
    start_as(monkeypatch, "inv", typed)
    record_typed_program({"doctor": ["image.doctor", "ci.doctor"]}, typed)
    assert translate_commands("inv doctor") == f"inv {expected}"


def test_core_options(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(monkeypatch, "inv", "-e", "-c", "my tools", "--search-root=x", "doctor", "-c", "y")
    record_typed_program({"doctor": ["doctor"]}, "doctor")
    assert translate_commands("inv doctor") == "inv -c 'my tools' -r x doctor"


PRIVATE = DockerClient(
    docker=("/cache/docker",),
    buildx=("/cache/docker-buildx",),
    env={"DOCKER_HOST": "unix:///run/x y.sock", "BUILDX_CONFIG": "/cache/buildx"},
)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("docker pull x:1", "DOCKER_HOST='unix:///run/x y.sock' /cache/docker pull x:1"),
        (
            "run docker buildx rm b",
            "run DOCKER_HOST='unix:///run/x y.sock' BUILDX_CONFIG=/cache/buildx /cache/docker-buildx rm b",
        ),
        ("docker login r.example", "/cache/docker login r.example"),
        ("write it as docker-daemon:x or docker://x", "write it as docker-daemon:x or docker://x"),
        ("--driver=docker or docker-container", "--driver=docker or docker-container"),
    ],
)
def test_client_of_private_engine(hint: str, expected: str) -> None:
    set_docker_client(PRIVATE)
    assert translate_commands(hint) == expected
    assert translate_commands(expected) == expected


def test_client_of_system_engine(no_typed_program: Path) -> None:
    docker = add_program(no_typed_program / "docker")
    set_docker_client(DockerClient(docker=(docker,), buildx=(docker, "buildx")))
    for hint in ("docker pull x", "docker buildx rm x", "docker login x"):
        assert translate_commands(hint) == hint


def test_client_of_answering_engine() -> None:
    tools = ClientTools(docker=("/x/docker",), buildx=("/x/docker-buildx",))
    info = '{"ServerVersion": "1", "Architecture": "x86_64", "Driver": "overlay2"}'
    commands = Scripted().expect("/x/docker info *", stdout=info)
    describe_engine("private", "unix:///s", tools, {"DOCKER_HOST": "unix:///s"}, commands)
    assert translate_commands("docker pull x") == "DOCKER_HOST=unix:///s /x/docker pull x"


TASKS = """
from invoke import Collection, task
from buildkit_tasks.tasks import ns as image, verify_arch

@task
def prove(c):
    verify_arch(c)

ns = Collection(prove, image=image)
ns.add_task(verify_arch, name="check")
"""


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("image.verify-arch", "image.build-multiarch"),
        ("check", "image.build-multiarch"),
        ("prove", "image.build-multiarch"),
    ],
)
def test_hint_of_tasks_file(tmp_path: Path, task: str, expected: str) -> None:
    """Read a hint of a real ``inv`` whose tasks are in a sub-collection, renamed, or called by another."""
    (tmp_path / "tasks.py").write_text(TASKS, encoding="utf-8")
    argv = [sys.executable, "-m", "invoke", task]
    env = {**os.environ, "HOME": str(tmp_path), "PATH": os.defpath}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"try: {sys.executable} -m invoke {expected}" in done.stderr
