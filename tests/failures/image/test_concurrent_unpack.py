"""Concurrent unpacking of one image, and a task that is killed while it unpacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from tests.conftest import ROOT
from tests.support.oci import single_platform_image, write_archive
from tests.support.unpacking import (
    Entry,
    directory,
    file,
    layer_tar,
    remove_path,
    symlink,
)
from tests.support.waiting import process_state, wait_until, waits_for_flock

MANY = 400

# Print how many entries the acquired root has and whether it was unpacked here; hold it until a line is read.
# The process stops itself (SIGSTOP) before it creates the file whose name is the last argument.
_PROGRAM = """
import os, signal, sys
from pathlib import Path
from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.oci.image import Image
folder, archive, cap, stop_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()

def stop(event, args):
    if event == "open" and args[0] == stop_at:
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(stop)
source = OciArchive(archive)
with RootfsCache(folder, cap, None).acquire(source, Image(source).platform_manifests[0][1]) as root:
    unpacked = "buildkit_tasks.run.sandbox.unpack" in sys.modules
    print(len(list((root.path / "d").iterdir())), unpacked, flush=True)
    sys.stdin.readline()
"""


class Task:
    """A process that uses a cached root file system."""

    def __init__(self, folder: Path, archive: Path, cap: int, stop_at: str) -> None:
        argv = [sys.executable, "-c", _PROGRAM, str(folder), str(archive), str(cap), stop_at]
        self.process = subprocess.Popen(
            # Background jobs of a shell ignore SIGINT, and their children inherit that.
            ["/usr/bin/env", "--default-signal=INT", *argv],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_stopped(self) -> None:
        wait_until(lambda: process_state(self.process.pid) in "TZ")
        assert self.process.poll() is None, self.process.communicate()

    def wait_until_blocked(self) -> None:
        """Wait until the process waits for the lock of another one."""
        wait_until(lambda: waits_for_flock(self.process.pid) or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        _, stderr = self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0, stderr

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


StartTask = Callable[..., Task]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartTask]:
    tasks: list[Task] = []

    def start_task(archive: Path, cap: int = 1 << 30, stop_at: str = "") -> Task:
        tasks.append(Task(tmp_path / "roots", archive, cap, stop_at))
        return tasks[-1]

    yield start_task
    for task in tasks:
        task.kill()


def image(path: Path, count: int, *more: Entry) -> Path:
    files = (file(f"d/{number}", b"x") for number in range(count))
    return write_archive(single_platform_image([layer_tar(directory("d"), *more, *files)]), path)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Write an image of many files, with a directory and a link that a naive removal cannot handle."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    return image(tmp_path / "large.tar", MANY, directory("a", mode=0), symlink("a/l", str(outside)))


def digest(archive: Path) -> str:
    with OciArchive(archive) as source:
        return Image(source).platform_manifests[0][1].digest.hex


def cached_digests(tmp_path: Path) -> set[str]:
    """Return the digests in the names of the cache's entries, staging directories included."""
    return {path.name.split("-")[1][:64] for path in (tmp_path / "roots").iterdir() if path.name != ".lock"}


def start_and_stop(start: StartTask, tmp_path: Path, archive: Path) -> tuple[Task, Path]:
    """Return a task that is stopped while it unpacks, and its staging directory."""
    task = start(archive, stop_at="20")
    task.wait_until_stopped()
    (staged,) = (tmp_path / "roots").glob(f".staging-*{digest(archive)}*")
    assert (staged / "root/d/19").exists()
    assert not (staged / "root/d/20").exists()
    return task, staged


def test_second_task_waits_for_unpack(start: StartTask, tmp_path: Path, large: Path) -> None:
    first, staged = start_and_stop(start, tmp_path, large)
    second = start(large)
    second.wait_until_blocked()
    assert staged.exists()
    first.send(signal.SIGCONT)
    assert first.read_line() == f"{MANY} True"
    assert second.read_line() == f"{MANY} False"
    first.end()
    second.end()
    assert cached_digests(tmp_path) == {digest(large)}


def test_other_image_does_not_wait(start: StartTask, tmp_path: Path, large: Path) -> None:
    first, staged = start_and_stop(start, tmp_path, large)
    other = start(image(tmp_path / "small.tar", 3))
    assert other.read_line() == "3 True"
    other.end()
    assert staged.exists()
    first.send(signal.SIGCONT)
    assert first.read_line() == f"{MANY} True"
    first.end()


def test_sixteen_tasks_share_one_root(start: StartTask, tmp_path: Path) -> None:
    small = image(tmp_path / "small.tar", 50)
    tasks = [start(small) for _ in range(16)]
    lines = [task.read_line() for task in tasks]
    assert {line.split()[0] for line in lines} == {"50"}
    assert lines.count("50 True") == 1
    for task in tasks:
        task.end()
    assert cached_digests(tmp_path) == {digest(small)}


@pytest.mark.parametrize("same", [True, False], ids=["the same image", "another image"])
def test_next_run_removes_stale_staging(same: bool, start: StartTask, tmp_path: Path, large: Path) -> None:
    killed, staged = start_and_stop(start, tmp_path, large)
    killed.kill()
    assert staged.exists()
    following = large if same else image(tmp_path / "small.tar", 3)
    task = start(following)
    assert task.read_line() == f"{MANY if same else 3} True"
    task.end()
    assert cached_digests(tmp_path) == {digest(following)}
    assert os.listdir(tmp_path / "outside") == ["file"]  # noqa: PTH208 - its name


def test_waiter_unpacks_after_a_kill(start: StartTask, tmp_path: Path, large: Path) -> None:
    killed, _ = start_and_stop(start, tmp_path, large)
    waiting = [start(large), start(large)]
    for task in waiting:
        task.wait_until_blocked()
    killed.kill()
    assert sorted(task.read_line() for task in waiting) == [f"{MANY} False", f"{MANY} True"]
    for task in waiting:
        task.end()
    assert cached_digests(tmp_path) == {digest(large)}


def test_root_is_in_use_until_user_exits(start: StartTask, tmp_path: Path) -> None:
    used, other = image(tmp_path / "used.tar", 3), image(tmp_path / "other.tar", 4)
    user = start(used)
    assert user.read_line() == "3 True"
    greedy = start(other, cap=0)
    assert greedy.read_line() == "4 True"
    greedy.end()
    assert cached_digests(tmp_path) == {digest(used)}
    user.kill()
    greedy = start(other, cap=0)
    assert greedy.read_line() == "4 True"
    assert cached_digests(tmp_path) == {digest(other)}
    greedy.end()
    assert cached_digests(tmp_path) == set()


def test_interrupted_task_cleans_up(start: StartTask, tmp_path: Path, large: Path) -> None:
    task, staged = start_and_stop(start, tmp_path, large)
    task.send(signal.SIGINT)
    task.send(signal.SIGCONT)
    task.process.communicate(timeout=60)
    assert task.process.returncode != 0
    assert not staged.exists()
    assert cached_digests(tmp_path) == set()
    remove_path(tmp_path / "roots")
