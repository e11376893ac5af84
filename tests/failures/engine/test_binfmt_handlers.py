"""binfmt_misc handlers that are lost, lack F, have no interpreter, or hang, in a private binfmt_misc."""

from __future__ import annotations

import json
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.failures import private_binfmt
from tests.failures.private_binfmt import ARM64, TaskResult, handler_line, qemu
from tests.support.project import Project

SETUP = ("setup-builder", "--json", f"--platform={ARM64}")

pytestmark = pytest.mark.usefixtures("binfmt_state", "engine")


def _platform_setup(result: TaskResult) -> dict[str, Any]:
    setup: dict[str, Any] = json.loads(result.done.stdout)["platforms"][0]
    return setup


def test_lost_handler_is_registered(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    with unchanged():
        result = private_binfmt.run(project, *SETUP)
    setup = _platform_setup(result)
    assert result.done.code == 0, result.done.stderr
    assert (setup["runs"], setup["native"], setup["handler"]) == (True, False, "qemu-aarch64")
    assert "F" in setup["flags"]
    assert "C" not in setup["flags"]
    assert list(result.handlers) == ["qemu-aarch64"]
    assert "flags: POF\n" in result.handlers["qemu-aarch64"]


def test_working_handler_is_kept(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    line = handler_line(qemu(), "OF", name="qemu-mine")
    with unchanged():
        result = private_binfmt.run(project, *SETUP, handlers=(line,))
    assert result.done.code == 0, result.done.stderr
    assert _platform_setup(result)["handler"] == "qemu-mine"
    assert list(result.handlers) == ["qemu-mine"]


def test_handler_without_f_is_kept(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    with unchanged():
        result = private_binfmt.run(project, *SETUP, handlers=(handler_line(qemu(), "OP"),))
    setup = _platform_setup(result)
    assert result.done.code == 3
    assert not setup["runs"]
    assert "qemu-aarch64" in setup["message"]
    assert "without F" in setup["message"]
    assert "flags: PO\n" in result.handlers["qemu-aarch64"]


def test_recreate_replaces_handler(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    with unchanged():
        result = private_binfmt.run(project, *SETUP, "--recreate", handlers=(handler_line(qemu(), "OP"),))
    assert result.done.code == 0, result.done.stderr
    assert "removing handler qemu-aarch64" in result.done.stderr
    assert list(result.handlers) == ["qemu-aarch64"]
    assert "flags: POF\n" in result.handlers["qemu-aarch64"]


def test_build_with_handler_without_f(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    project.write({"Dockerfile": "FROM scratch\n"})
    task = ("build-multiarch", f"--platform={ARM64}")
    with unchanged():
        result = private_binfmt.run(project, *task, handlers=(handler_line(qemu(), "OP"),))
    assert result.done.code == 3
    assert f"error: {ARM64}: handler qemu-aarch64" in result.done.stderr
    assert "buildkit_tasks setup-builder --recreate\n" in result.done.stderr
    assert not (project.folder / "dist").exists()


def test_missing_interpreter(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    missing = project.folder / "gone/qemu-aarch64"
    with unchanged():
        result = private_binfmt.run(project, *SETUP, handlers=(handler_line(missing, "OP"),))
    setup = _platform_setup(result)
    assert result.done.code == 3
    assert not setup["runs"]
    assert f"names the interpreter {missing}, which does not exist" in setup["message"]


def test_hanging_probe(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    project.write(
        {"hang": "#!/bin/sh\ntrap '' TERM\necho >> \"$0.starts\"\nsleep 777 &\nwhile :; do wait; done\n"}
    )
    line = handler_line(project.folder / "hang", "")
    with unchanged():
        result = private_binfmt.run(project, *SETUP, handlers=(line,))
    setup = _platform_setup(result)
    assert result.done.code == 3
    assert not setup["runs"]
    assert "did not end within 10 s" in setup["message"]
    # Before and after the registration.
    assert (project.folder / "hang.starts").read_text(encoding="utf-8").count("\n") == 2
