"""However a task ends, the sandbox leaves no process, mount or directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from tests.conftest import Unchanged
from tests.sandbox.conftest import BusyboxImage, run_command
from tests.support.project import TASKS, Project
from tests.support.waiting import wait_until

# A guest and its child, which sleep for an hour; the durations identify those of this process.
_SECONDS = tuple(f"{3600 + os.getpid()}.{fraction}" for fraction in (25, 75))
_WAIT_SECONDS = 120.0  # twice that is less than the timeout of the guests
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
        wait_until(lambda: len(_guests()) >= 2 * len(_SECONDS))
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
        task.send_signal(number)
        _, stderr = task.communicate(timeout=_WAIT_SECONDS)
        assert task.returncode == code, stderr
        _wait_for_end()
        assert "Traceback" not in stderr


def test_killed_task_releases_rootfs(
    start_task: StartTask, busybox_image: BusyboxImage, project: Project
) -> None:
    task = start_task()
    task.kill()
    task.communicate()
    _wait_for_end()
    assert run_command(project, busybox_image("linux/amd64"), "echo again") == ["again"]
    roots = cache_folder(load_settings()) / "roots"
    assert [path.name for path in roots.iterdir() if path.name.startswith((".staging", ".gone"))] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace of the test's own needs root")
def test_killed_supervisor(start_task: StartTask) -> None:
    task = start_task()
    # The supervisor is a child of the task; the others are helpers and inits of its guests.
    (supervisor,) = (pid for pid in _supervisors() if _parent_of(pid) == task.pid)
    os.kill(supervisor, signal.SIGKILL)
    _, stderr = task.communicate(timeout=_WAIT_SECONDS)
    assert task.returncode == 1, stderr
    _wait_for_end()


def test_twenty_tasks_in_parallel(busybox_image: BusyboxImage, project: Project) -> None:
    image = busybox_image("linux/arm64", Cmd=["/bin/uname", "-m"])
    tasks = [project.start((*TASKS, "run-emulated", image, "--runner=sandbox", "--json")) for _ in range(20)]
    outputs = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 20, outputs[0][1]
    assert all('"stdout": "aarch64\\n"' in stdout for stdout, _ in outputs)
    _wait_for_end()


def _wait_for_end() -> None:
    """Wait until no guest and no supervisor of a task that ended is left."""
    wait_until(lambda: not _guests() and not _orphaned_supervisors(), _WAIT_SECONDS)


def _guests() -> list[int]:
    """Return the PIDs of the guests, QEMU included."""
    return [pid for second in _SECONDS for pid in _find_processes(f"\0{second}\0")]


def _supervisors() -> list[int]:
    return _find_processes("/sandbox/supervisor_main.py\0")


def _orphaned_supervisors() -> list[int]:
    """Return supervisors whose task ended; those of tests that run meanwhile have a parent in Python."""
    return [pid for pid in _supervisors() if "python" not in _program_of(_parent_of(pid))]


def _find_processes(text: str) -> list[int]:
    pids = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in entry.read_bytes():
                pids.append(int(entry.parent.name))
    return pids


def _program_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name
    return ""


def _parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0
