"""Guests that take memory which belongs to no process, or which several share.

Root's guests have control groups. Those of an ordinary user have none here: what init counts is shown with
root's guests too, whose ids differ from init's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.sandbox import supervisor as supervisor_module
from buildkit_tasks.run.sandbox.cgroups import CgroupParent, find_cgroup_parents
from buildkit_tasks.run.sandbox.supervisor import Supervisor
from tests.sandbox.conftest import BusyboxImage, find_qemu, run_command, run_program
from tests.support import guests
from tests.support.bombs import BOMBS, bomb
from tests.support.nobody import Nobody, create_nobody
from tests.support.oci import MemoryImage, add_platform, make_tar, write_archive
from tests.support.project import Project
from tests.support.users import needs_root
from tests.support.waiting import wait_until

AMD64, ARM64 = "linux/amd64", "linux/arm64"
MEMORY = "more than 1024 MiB of memory"
# QEMU does not do MADV_POPULATE_WRITE, with which that of System V takes its memory.
EMULATED = [name for name in BOMBS if name != "System V shared memory"]
PROCESSES = {"threads": "more than 256 processes and threads"}
# What ends each with a control group, and where init counts.
LIMITED = dict.fromkeys(BOMBS, MEMORY) | PROCESSES
COUNTED = LIMITED | {"sockets": "more than 2048 sockets"}

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code for amd64")


@pytest.fixture(params=["cgroup", "counted by init"])
def supervisor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    if request.param != "cgroup":
        monkeypatch.setattr(supervisor_module, "find_cgroup_parents", tuple)
    elif not find_cgroup_parents():
        pytest.skip("this user may create no control groups here")
    with Supervisor() as started:
        yield started


@pytest.mark.parametrize("name", list(BOMBS))
def test_bomb(supervisor: Supervisor, root: Path, name: str) -> None:
    expected = (LIMITED if supervisor._cgroup_parents else COUNTED)[name]
    ended = run_program(supervisor, root, bomb(AMD64, name))
    assert (ended.limit_exceeded, ended.timed_out) == (expected, False)
    assert ended.exit_code == 137
    assert ended.seconds > 0


@pytest.mark.parametrize("name", EMULATED)
def test_emulated_bomb(supervisor: Supervisor, root: Path, name: str) -> None:
    machine = Platform.parse(ARM64).machine
    supervisor.register(machine, find_qemu(machine))
    expected = (LIMITED if supervisor._cgroup_parents else COUNTED)[name]
    assert run_program(supervisor, root, bomb(ARM64, name)).limit_exceeded == expected


@pytest.mark.parametrize("in_child", [False, True])
def test_private_memory(supervisor: Supervisor, root: Path, in_child: bool) -> None:
    assert run_program(supervisor, root, guests.memory_hog(AMD64, in_child=in_child)).limit_exceeded == MEMORY


@pytest.fixture
def parents() -> tuple[CgroupParent, ...]:
    if not find_cgroup_parents():
        pytest.skip("this user may create no control groups here")
    return find_cgroup_parents()


@pytest.mark.parametrize("end", ["timeout", "closed", "killed"])
def test_group_is_removed(root: Path, parents: tuple[CgroupParent, ...], end: str) -> None:
    with Supervisor() as started:
        timeout = 1 if end == "timeout" else 60
        thread = threading.Thread(
            target=run_program, args=(started, root, guests.ignore_signals(AMD64), timeout)
        )
        thread.start()
        wait_until(lambda: _find_groups(parents, started._process.pid))
        groups = _find_groups(parents, started._process.pid)
        if end == "killed":
            started._process.kill()
        if end != "closed":
            thread.join()
    thread.join()
    assert len(groups) == len(parents)
    assert not [path for path in groups if path.exists()]


def _find_groups(parents: tuple[CgroupParent, ...], supervisor_pid: int) -> list[Path]:
    """Return the groups of a supervisor's guests, which bear the PIDs of its children."""
    pids = Path(f"/proc/{supervisor_pid}/task/{supervisor_pid}/children").read_text(encoding="ascii").split()
    paths = [parent.directory / f"buildkit-tasks-{pid}" for parent in parents for pid in pids]
    return [path for path in paths if path.exists()]


def test_stale_groups(parents: tuple[CgroupParent, ...]) -> None:
    """What a killed process has left goes away with the next start."""
    stale = [parent.directory / "buildkit-tasks-4194305" for parent in parents]  # above the highest PID
    for directory in stale:
        directory.mkdir()
    with Supervisor():
        assert not [directory for directory in stale if directory.exists()]


def test_empty_files(busybox_image: BusyboxImage, project: Project) -> None:
    """Each takes memory of the kernel only, which the size of a tmpfs does not limit."""
    script = (
        "cd /tmp; i=0; while true 2>/dev/null > f$i; do i=$((i+1)); done; echo $i; touch /dev/shm/x; ls f0"
    )
    count, name = run_command(project, busybox_image("linux/amd64"), script)
    assert 10_000 < int(count) < 16_384
    assert name == "f0"


def test_sizes_of_files(busybox_image: BusyboxImage, project: Project) -> None:
    script = "ulimit -f; ulimit -n; ulimit -Hn"
    blocks, soft, hard = run_command(project, busybox_image("linux/amd64"), script)
    assert int(blocks) * 512 == (2 << 30) + (512 << 20)
    assert int(soft) <= 1024
    assert int(hard) <= 16384


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    with create_nobody() as user:
        yield user


@needs_root
@pytest.mark.parametrize(
    ("platform", "name"), [(AMD64, name) for name in BOMBS] + [(ARM64, name) for name in EMULATED]
)
def test_bomb_of_ordinary_user(nobody: Nobody, tmp_path: Path, platform: str, name: str) -> None:
    memory = MemoryImage()
    layer = make_tar({"main": bomb(platform, name)})
    memory.set_index([add_platform(memory, platform, [layer], Cmd=["/main"])])
    image = f"oci-archive:{nobody.copy_to_home(write_archive(memory, tmp_path / 'bomb.tar'))}"
    report = nobody.task("run-emulated", image, "--json", "--timeout=60", expect=5).document
    assert COUNTED[name] in report["results"][0]["message"]
