from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import EngineError
from buildkit_tasks.system.process import Process, find_processes_by_argument

if TYPE_CHECKING:
    from collections.abc import Iterator

IGNORE_SIGTERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


@pytest.fixture
def term_ignorer() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-I", "-c", IGNORE_SIGTERM], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


def test_running_process(sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.from_pid(sleeper.pid)
    assert process.is_alive
    assert Process.parse(str(process)) == process
    assert Process.from_pid(os.getpid()).is_alive


@pytest.mark.parametrize(
    "text", ["", "12", "12-", "-12", "a-1", "1-b", "1--2", "12-34 ", "\u00b2-1", "1-2-3"]
)
def test_parse_invalid_text(text: str) -> None:
    assert Process.parse(text) is None


def test_reused_pid(sleeper: subprocess.Popen[bytes]) -> None:
    previous = Process(pid=sleeper.pid, start_time=Process.from_pid(sleeper.pid).start_time - 1)
    assert not previous.is_alive
    previous.terminate(0.1)
    assert sleeper.poll() is None


def test_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as child:
        process = _process_of_zombie(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # type: ignore[attr-defined,unused-ignore]  # Linux only
        assert Path(f"/proc/{child.pid}").exists()
        assert not process.is_alive
        with pytest.raises(ProcessLookupError):
            Process.from_pid(child.pid)


def _process_of_zombie(pid: int) -> Process:
    """Return the process even if it is a zombie already: its /proc/PID/stat has the start time, too."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return Process(pid=pid, start_time=int(fields[19]))


def test_ended_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = Process.from_pid(child.pid)
    child.kill()
    child.wait()
    assert not process.is_alive
    with pytest.raises(ProcessLookupError):
        Process.from_pid(child.pid)
    process.terminate(0.1)


def test_start_time_with_odd_name(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to(Path(sys.executable).resolve())
    with subprocess.Popen([str(program), "-I", "-c", "import time; time.sleep(60)"]) as child:
        expected = int(
            Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        )
        name = Path(f"/proc/{child.pid}/comm").read_text(encoding="utf-8")
        assert Process.from_pid(child.pid).start_time == expected
        child.kill()
    assert name == "a) S 1 (b\n"


def test_terminate(sleeper: subprocess.Popen[bytes]) -> None:
    Process.from_pid(sleeper.pid).terminate(5)
    assert sleeper.wait() == -signal.SIGTERM


@pytest.mark.timeout(120)
def test_terminate_kills(term_ignorer: subprocess.Popen[bytes]) -> None:
    Process.from_pid(term_ignorer.pid).terminate(0.2)
    assert term_ignorer.wait() == -signal.SIGKILL


def test_unkillable_process(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_tasks.system.process._KILL_SECONDS", 0.05)
    with monkeypatch.context() as patch:  # the fixture kills the process, maybe before monkeypatch's clean-up
        patch.setattr(os, "kill", lambda *_: None)
        with pytest.raises(EngineError, match=f"process {sleeper.pid} could not be killed"):
            Process.from_pid(sleeper.pid).terminate(0.05)


def test_find_processes_by_argument(tmp_path: Path) -> None:
    root, other = tmp_path / "ours", tmp_path / "other"
    code = "import sys, time; print(1, flush=True); time.sleep(60)"
    argv = [sys.executable, "-I", "-c", code]
    with (
        subprocess.Popen([*argv, f"--root={root}/x"], stdout=subprocess.PIPE) as one,
        subprocess.Popen([*argv, f"--root={other}"], stdout=subprocess.PIPE) as two,
    ):
        for child in (one, two):
            assert child.stdout is not None
            child.stdout.readline()
        assert find_processes_by_argument(root) == [Process.from_pid(one.pid)]
        one.kill()
        two.kill()
    assert find_processes_by_argument(root) == []
