"""However a task ends, the sandbox leaves no process, mount or directory."""

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
from tests.sandbox.conftest import BusyboxImage, run_command
from tests.support.project import TASKS, Project

# A guest and its child, which sleep for an hour; the unusual durations identify them.
_SECONDS = ("3601.25", "3602.5")
_SCRIPT = f"trap '' TERM INT HUP; sleep {_SECONDS[0]} & sleep {_SECONDS[1]}"

StartTask = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start_task(busybox_image: BusyboxImage, project: Project) -> Iterator[StartTask]:
    """Return a function that starts a task and returns once its guests run, natively and under QEMU."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        image = busybox_image("linux/amd64", "linux/arm64", Cmd=["/bin/sh", "-c", _SCRIPT])
        task = project.start((*TASKS, "run-emulated", image, "--runner=sandbox", "--timeout=300"))
        started.append(task)
        _wait_until(lambda: len(_guests()) >= 2 * len(_SECONDS))
        return task

    yield start
    for task in started:
        with contextlib.suppress(ProcessLookupError):
            task.kill()
        task.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signalled_task_leaves_nothing(
    start_task: StartTask, unchanged: Unchanged, number: int, code: int
) -> None:
    with unchanged():
        task = start_task()
        signalled = time.monotonic()
        task.send_signal(number)
        _, stderr = task.communicate(timeout=20)
        assert task.returncode == code, stderr
        _wait_until(lambda: not _guests() and not _supervisors())
        assert time.monotonic() - signalled < 10
        assert "Traceback" not in stderr


def test_killed_task_releases_rootfs(
    start_task: StartTask, busybox_image: BusyboxImage, project: Project
) -> None:
    task = start_task()
    task.kill()
    task.communicate()
    _wait_until(lambda: not _guests())
    assert run_command(project, busybox_image("linux/amd64"), "echo again") == ["again"]
    roots = cache_folder(load_settings()) / "roots"
    assert [path.name for path in roots.iterdir() if path.name.startswith((".staging", ".gone"))] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace of the test's own needs root")
def test_killed_supervisor(start_task: StartTask) -> None:
    task = start_task()
    # The supervisor is a child of the task; the others are helpers and inits of its guests.
    (supervisor,) = (pid for pid in _supervisors() if _parent_of(pid) == task.pid)
    os.kill(supervisor, signal.SIGKILL)
    _, stderr = task.communicate(timeout=20)
    assert task.returncode == 1, stderr
    _wait_until(lambda: not _guests() and not _supervisors())


def test_twenty_tasks_in_parallel(busybox_image: BusyboxImage, project: Project) -> None:
    image = busybox_image("linux/arm64", Cmd=["/bin/uname", "-m"])
    tasks = [project.start((*TASKS, "run-emulated", image, "--runner=sandbox", "--json")) for _ in range(20)]
    outputs = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 20, outputs[0][1]
    assert all('"stdout": "aarch64\\n"' in stdout for stdout, _ in outputs)
    _wait_until(lambda: not _supervisors())


def _guests() -> list[int]:
    """Return the PIDs of the guests, QEMU included."""
    return [pid for second in _SECONDS for pid in _find_processes(f"\0{second}\0")]


def _supervisors() -> list[int]:
    return _find_processes("/sandbox/supervisor_main.py\0")


def _find_processes(text: str) -> list[int]:
    pids = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in entry.read_bytes():
                pids.append(int(entry.parent.name))
    return pids


def _parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
