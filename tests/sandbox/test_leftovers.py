"""Whatever ends a task, nothing of the sandbox is left: no process, no mount, no folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from tests.conftest import Unchanged
from tests.sandbox.conftest import Busy, says
from tests.support.project import TASKS, Project

# A guest with a child, both of which would stay for an hour; nobody else sleeps so long.
_SECONDS = ("3601.25", "3602.5")
_SCRIPT = f"trap '' TERM INT HUP; sleep {_SECONDS[0]} & sleep {_SECONDS[1]}"

Running = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def running(busy: Busy, project: Project) -> Iterator[Running]:
    """Start a task whose guests run, natively and under QEMU, when this gives it."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        image = busy("linux/amd64", "linux/arm64", Cmd=["/bin/sh", "-c", _SCRIPT])
        task = project.start((*TASKS, "run-emulated", image, "--runner=sandbox", "--timeout=300"))
        started.append(task)
        _until(lambda: len(_guests()) >= 2 * len(_SECONDS))
        return task

    yield start
    for task in started:
        with contextlib.suppress(ProcessLookupError):
            task.kill()
        task.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_is_left_of_a_task_that_is_ended_in_mid_run(
    running: Running, unchanged: Unchanged, number: int, code: int
) -> None:
    with unchanged():
        task = running()
        ended = time.monotonic()
        task.send_signal(number)
        _, stderr = task.communicate(timeout=20)
        assert task.returncode == code, stderr
        _until(lambda: not _guests() and not _wardens())
        assert time.monotonic() - ended < 10
        assert "Traceback" not in stderr


def test_a_killed_guests_root_is_not_in_use_for_ever(running: Running, busy: Busy, project: Project) -> None:
    task = running()
    task.kill()
    task.communicate()
    _until(lambda: not _guests())
    assert says(project, busy("linux/amd64"), "echo again") == ["again"]
    roots = cache_folder(load_settings()) / "roots"
    assert [path.name for path in roots.iterdir() if path.name.startswith((".staging", ".gone"))] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace of the test's own needs root")
def test_a_killed_warden_takes_its_guests_along(running: Running) -> None:
    task = running()
    # The warden is the task's own child; the others are its guests' inits and their helpers.
    (warden,) = (pid for pid in _wardens() if _parent(pid) == task.pid)
    os.kill(warden, signal.SIGKILL)
    _, stderr = task.communicate(timeout=20)
    assert task.returncode == 1, stderr
    _until(lambda: not _guests() and not _wardens())


def test_twenty_tasks_at_once_do_not_disturb_one_another(busy: Busy, project: Project) -> None:
    image = busy("linux/arm64", Cmd=["/bin/uname", "-m"])
    tasks = [project.start((*TASKS, "run-emulated", image, "--runner=sandbox", "--json")) for _ in range(20)]
    ended = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 20, ended[0][1]
    assert all('"stdout": "aarch64\\n"' in stdout for stdout, _ in ended)
    _until(lambda: not _wardens())


def _guests() -> list[int]:
    """Processes that sleep as long as our guests do, QEMU included."""
    return [pid for second in _SECONDS for pid in _having(f"\0{second}\0")]


def _wardens() -> list[int]:
    return _having("/sandbox/supervisor_main.py\0")


def _having(words: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0


def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
