"""Handlers that are lost, that lack F, whose interpreter is gone, that hang: each in a table of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.failures import private_binfmt as own_table
from tests.failures.private_binfmt import ARM64, handler_line, qemu
from tests.support.project import Project

SETUP = ("setup-builder", "--json", f"--platform={ARM64}")

pytestmark = pytest.mark.usefixtures("own_table", "engine")


def _row(stdout: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(stdout)["platforms"][0]
    return row


def test_row_2_handlers_that_were_lost_are_registered_again(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    with unchanged():
        ended = own_table.run(project, *SETUP)
    row = _row(ended.done.stdout)
    assert ended.done.code == 0, ended.done.stderr
    assert (row["runs"], row["native"], row["handler"]) == (True, False, "qemu-aarch64")
    assert "F" in row["flags"]
    assert "C" not in row["flags"]
    assert list(ended.table) == ["qemu-aarch64"]
    assert "flags: POF\n" in ended.table["qemu-aarch64"]


def test_a_handler_that_works_is_kept_as_it_is(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    line = handler_line(qemu(), "OF", name="qemu-mine")
    with unchanged():
        ended = own_table.run(project, *SETUP, handlers=(line,))
    assert ended.done.code == 0, ended.done.stderr
    assert _row(ended.done.stdout)["handler"] == "qemu-mine"
    assert list(ended.table) == ["qemu-mine"]


def test_row_3_a_handler_without_f_is_named_and_kept(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    with unchanged():
        ended = own_table.run(project, *SETUP, handlers=(handler_line(qemu(), "OP"),))
    row = _row(ended.done.stdout)
    assert ended.done.code == 3
    assert not row["runs"]
    assert "qemu-aarch64" in row["message"]
    assert "without F" in row["message"]
    assert "flags: PO\n" in ended.table["qemu-aarch64"]


def test_row_3_a_handler_without_f_is_replaced_when_asked(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    with unchanged():
        ended = own_table.run(project, *SETUP, "--recreate", handlers=(handler_line(qemu(), "OP"),))
    assert ended.done.code == 0, ended.done.stderr
    assert "removing handler qemu-aarch64" in ended.done.stderr
    assert list(ended.table) == ["qemu-aarch64"]
    assert "flags: POF\n" in ended.table["qemu-aarch64"]


def test_row_3_a_build_stops_and_says_which_command_mends_it(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    project.write({"Dockerfile": "FROM scratch\n"})
    task = ("build-multiarch", f"--platform={ARM64}")
    with unchanged():
        ended = own_table.run(project, *task, handlers=(handler_line(qemu(), "OP"),))
    assert ended.done.code == 3
    assert f"error: {ARM64}: handler qemu-aarch64" in ended.done.stderr
    assert "try: inv setup-builder --recreate" in ended.done.stderr
    assert not (project.folder / "dist").exists()


def test_row_4_an_interpreter_that_is_missing_is_named(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    missing = project.folder / "gone/qemu-aarch64"
    with unchanged():
        ended = own_table.run(project, *SETUP, handlers=(handler_line(missing, "OP"),))
    row = _row(ended.done.stdout)
    assert ended.done.code == 3
    assert not row["runs"]
    assert f"names the interpreter {missing}, which does not exist" in row["message"]


def test_row_11_a_probe_that_hangs_is_ended_with_its_group_after_ten_seconds(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    project.write({"hang": "#!/bin/sh\ntrap '' TERM\nsleep 777 &\nwhile :; do wait; done\n"})
    line = handler_line(project.folder / "hang", "")
    with unchanged():
        ended = own_table.run(project, *SETUP, handlers=(line,))
    row = _row(ended.done.stdout)
    assert ended.done.code == 3
    assert not row["runs"]
    assert "did not end within 10 s" in row["message"]
    assert 10 < ended.done.seconds < 50  # it is asked before and after what would register it
