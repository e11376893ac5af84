from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.system.output import open_missing_output, tolerate_closed_pipe


def test_closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        for text in ("first", "second", "x" * 100_000):
            with tolerate_closed_pipe(stream):
                stream.write(text)


def test_open_pipe() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader) as received:
        with tolerate_closed_pipe(stream):
            stream.write("text\n")
        assert received.readline() == "text\n"


def test_full_disk() -> None:
    full = Path("/dev/full").open("w", buffering=1, encoding="utf-8")  # noqa: SIM115 - close() fails as well
    with pytest.raises(OSError, match="No space left"), tolerate_closed_pipe(full):
        full.write("text")
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_missing_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    open_missing_output()
    with sys.stdout:
        assert sys.stdout.write("text") == 4


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["--list", "doctor", "doctor --json"])
def test_program(args: str, unbuffered: str, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "PYTHONUNBUFFERED": unbuffered,
        "XDG_CACHE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
    }
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "buildkit_tasks", *args.split()]
    done = subprocess.run(
        argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=env, cwd=tmp_path
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 3)  # as without an engine
