from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.host import privileges
from buildkit_tasks.host.privileges import (
    command_as_root,
    list_missing_capabilities,
    rerun_as_root,
    user_name,
)
from tests.support.users import call_as_nobody, needs_root


def write_program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_command_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_as_root("inv x 'a b'") == """su -c 'inv x '"'"'a b'"'"''"""
    system_program = write_program(tmp_path / "sbin/usermod", "")
    monkeypatch.setattr(privileges, "_SYSTEM_FOLDERS", str(system_program.parent))
    assert command_as_root("usermod x") == f"su -c '{system_program} x'"
    write_program(tmp_path / "sudo", "")
    assert command_as_root("usermod x") == "sudo usermod x"
    assert command_as_root("inv x 'a b'") == "sudo inv x 'a b'"


def test_rerun_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command can be pasted: sudo has another PATH, so that the program is named by its path."""
    output = tmp_path / "output"
    program = write_program(tmp_path / "venv/tasks", f"printf '%s|' \"$@\" > {output}")
    write_program(tmp_path / "bin/sudo", 'PATH=/usr/bin:/bin; exec "$@"')
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(tmp_path / "bin"), str(program.parent), "/usr/bin", "/bin"])
    )
    monkeypatch.setattr(sys, "argv", ["tasks", "build-multiarch", "--build-arg", "A=b c"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    command = rerun_as_root()
    assert shlex.split(command)[:2] == ["sudo", str(program)]
    subprocess.run(["sh", "-c", command], check=True)
    assert output.read_text(encoding="utf-8") == "build-multiarch|--build-arg|A=b c|"


@needs_root
def test_user_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_as_nobody(user_name) == "nobody"
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000)
    assert user_name() == "4000000"


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("000001ffffffffff", []),
        ("00000000a80425fb", ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]),  # docker run
        ("00000000a80435fb", ["CAP_SYS_ADMIN"]),  # docker run --cap-add=NET_ADMIN
        ("0000000000000000", ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]),
    ],
)
def test_missing_capabilities(tmp_path: Path, effective: str, missing: list[str]) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapEff:\t{effective}\n", encoding="ascii")
    assert list_missing_capabilities(tmp_path / "status") == missing
    assert list_missing_capabilities(tmp_path / "none") == []
