from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import EngineError
from buildkit_tasks.system.process import Process, find_processes_by_argument

if TYPE_CHECKING:
    from collections.abc import Iterator

IGNORES_TERM = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-I", "-c", IGNORES_TERM], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


def test_a_running_process_is_alive_and_is_found_again_by_its_text(sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.from_pid(sleeper.pid)
    assert process.is_alive
    assert Process.parse(str(process)) == process
    assert Process.from_pid(os.getpid()).is_alive


@pytest.mark.parametrize(
    "text", ["", "12", "12-", "-12", "a-1", "1-b", "1--2", "12-34 ", "\u00b2-1", "1-2-3"]
)
def test_other_text_names_no_process(text: str) -> None:
    assert Process.parse(text) is None


def test_row_20_a_later_process_with_the_same_pid_is_not_taken_for_it(
    sleeper: subprocess.Popen[bytes],
) -> None:
    earlier = Process(pid=sleeper.pid, start_time=Process.from_pid(sleeper.pid).start_time - 1)
    assert not earlier.is_alive
    earlier.terminate(0.1)
    assert sleeper.poll() is None


def test_a_dead_process_that_nobody_waited_for_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as child:
        process = _until_known(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}").exists()
        assert not process.is_alive
        with pytest.raises(ProcessLookupError):
            Process.from_pid(child.pid)


def _until_known(pid: int) -> Process:
    """The process, whose start time its dead body tells as well."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return Process(pid=pid, start_time=int(fields[19]))


def test_a_process_that_is_gone_is_not_alive_and_cannot_be_looked_up() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = Process.from_pid(child.pid)
    child.kill()
    child.wait()
    assert not process.is_alive
    with pytest.raises(ProcessLookupError):
        Process.from_pid(child.pid)
    process.terminate(0.1)


def test_the_start_time_is_read_past_a_name_with_blanks_and_parentheses(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to(Path(sys.executable).resolve())
    with subprocess.Popen([str(program), "-I", "-c", "import time; time.sleep(60)"]) as child:
        plain = int(
            Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        )
        name = Path(f"/proc/{child.pid}/comm").read_text(encoding="utf-8")
        assert Process.from_pid(child.pid).start_time == plain
        child.kill()
    assert name == "a) S 1 (b\n"


def test_a_process_that_obeys_gets_term_alone(sleeper: subprocess.Popen[bytes]) -> None:
    Process.from_pid(sleeper.pid).terminate(5)
    assert sleeper.wait() == -signal.SIGTERM


def test_a_process_that_ignores_term_is_killed(stubborn: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    Process.from_pid(stubborn.pid).terminate(0.2)
    assert time.monotonic() - started < 4
    assert stubborn.wait() == -signal.SIGKILL


def test_a_process_that_does_not_end_is_named(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildkit_tasks.system.process._KILL_SECONDS", 0.05)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with pytest.raises(EngineError, match=f"process {sleeper.pid} does not end"):
        Process.from_pid(sleeper.pid).terminate(0.05)


def test_processes_are_found_by_a_folder_in_their_command_line(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    code = "import sys, time; print(1, flush=True); time.sleep(60)"
    argv = [sys.executable, "-I", "-c", code]
    with (
        subprocess.Popen([*argv, f"--root={ours}/x"], stdout=subprocess.PIPE) as one,
        subprocess.Popen([*argv, f"--root={other}"], stdout=subprocess.PIPE) as two,
    ):
        for child in (one, two):
            assert child.stdout is not None
            child.stdout.readline()
        assert find_processes_by_argument(ours) == [Process.from_pid(one.pid)]
        one.kill()
        two.kill()
    assert find_processes_by_argument(ours) == []
