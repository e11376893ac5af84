"""What a guest can and cannot do, seen from inside the guest and from the host."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from tests.conftest import ROOT, Unchanged
from tests.sandbox.conftest import BusyboxImage, run_command
from tests.support import census
from tests.support.project import TASKS, Project
from tests.support.waiting import wait_until

PLATFORMS = ("linux/amd64", "linux/arm64")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_capabilities(busybox_image: BusyboxImage, project: Project, platform: str) -> None:
    lines = run_command(project, busybox_image(platform), "grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    values = dict(line.split(":\t") for line in lines)
    assert set(values) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"}
    assert values.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in values.values()} == {0}


@pytest.mark.parametrize("user", ["", "app"])
@pytest.mark.parametrize(
    "forbidden",
    [
        "touch /x",
        "touch /bin/x",
        "chmod 777 /bin/busybox",
        "mount -t tmpfs none /tmp",
        "unshare -U true",
        "unshare -m true",
        "hostname other",
        "kill -9 1 && false",
        "cat /proc/1/environ",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "echo 1000 > /proc/1/oom_score_adj",
    ],
)
def test_forbidden_operations(
    busybox_image: BusyboxImage, project: Project, user: str, forbidden: str
) -> None:
    lines = run_command(
        project, busybox_image("linux/amd64", User=user), f"({forbidden}) 2>&1 && echo done || echo refused"
    )
    assert lines[-1] == "refused", lines


def test_visible_processes_and_devices(busybox_image: BusyboxImage, project: Project) -> None:
    lines = run_command(project, busybox_image("linux/amd64"), "ls -d /proc/[0-9]*; ls /dev; hostname")
    assert [line for line in lines if line.startswith("/proc/")] == ["/proc/1", "/proc/2"]
    devices = {"fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert set(lines[2:-1]) == devices
    assert lines[-1] == "guest"


def test_mounts(busybox_image: BusyboxImage, project: Project) -> None:
    lines = run_command(project, busybox_image("linux/amd64"), "cat /proc/self/mounts")
    mounts = {line.split()[1]: line.split()[3].split(",") for line in lines}
    devices = {"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}
    masked = {path for path in mounts if path.startswith("/proc/")}
    assert set(mounts) == {"/", "/dev", "/dev/shm", "/tmp", "/proc", *devices, *masked}  # noqa: S108 - the guest's
    assert {"ro", "nosuid", "nodev"} <= set(mounts["/"])
    assert {"nosuid", "nodev", "noexec"} <= set(mounts["/proc"])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_host_paths_are_hidden(busybox_image: BusyboxImage, project: Project, platform: str) -> None:
    """Neither the folder of the image's files nor those of Python and this package."""
    files = "cmdline comm environ maps mountinfo mounts mountstats cgroup stat auxv"
    show = f"for p in 1 self; do for f in {files}; do cat /proc/$p/$f 2>/dev/null; done; done"
    links = "ls -l /proc/*/exe /proc/*/root /proc/*/cwd /proc/self/fd /proc/self/task/*/exe"
    text = "\n".join(run_command(project, busybox_image(platform), f"{show}; {links} 2>&1 || true"))
    assert "init\0" in text
    assert " / / ro," in text
    hidden = {cache_folder(load_settings()), Path.home(), Path(sys.prefix), ROOT, project.folder}
    assert [path for path in map(str, hidden) if path != "/" and f"{path}/" in text] == []
    assert "python" not in text


@pytest.mark.parametrize("platform", PLATFORMS)
def test_one_device_and_small_inodes(busybox_image: BusyboxImage, project: Project, platform: str) -> None:
    """As in Docker: a program of 32 bits could not read larger numbers."""
    lines = run_command(project, busybox_image(platform), "stat -c '%d %i' / /bin /bin/busybox /etc/passwd")
    assert len({line.split()[0] for line in lines}) == 1
    assert all(int(line.split()[1]) < 1 << 32 for line in lines)


def test_masked_files(busybox_image: BusyboxImage, project: Project) -> None:
    names = ("acpi", "interrupts", "kcore", "keys", "sched_debug", "scsi", "timer_list")
    paths = [path for path in (Path("/proc") / name for name in names) if path.exists()]
    show = [f"ls -A {path} | head" if path.is_dir() else f"head -c 9 {path}" for path in paths]
    assert show
    assert run_command(project, busybox_image("linux/amd64"), "; ".join(show)) == []


def test_tmp_is_writable_and_limited(busybox_image: BusyboxImage, project: Project) -> None:
    fill = "dd if=/dev/zero of=/tmp/y bs=1M count=200 2>/dev/null || stat -c %s /tmp/y"
    script = f"echo hi > /tmp/x && cat /tmp/x; {fill}"
    greeting, size = run_command(project, busybox_image("linux/amd64", User="app"), script)
    assert greeting == "hi"
    assert 60 << 20 < int(size) <= 64 << 20


def test_network_is_loopback_only(busybox_image: BusyboxImage, project: Project) -> None:
    script = "cat /proc/net/dev | wc -l; grep -c 127.0.0.1 /proc/net/fib_trie; cat /proc/net/route | wc -l"
    lines = run_command(project, busybox_image("linux/amd64"), script)
    assert lines[0] == "3"
    assert int(lines[1]) > 0
    assert lines[2] == "1"


def test_ids_and_processors(busybox_image: BusyboxImage, project: Project) -> None:
    script = "id -u; cat /proc/self/uid_map; nproc; grep Cpus_allowed_list /proc/self/status"
    uid, ids, count, allowed = run_command(project, busybox_image("linux/amd64"), script)
    inside, outside, _ = map(int, ids.split())
    assert (uid, inside) == ("0", 0)
    assert outside == 0  # relative to the parent, the supervisor's namespace
    assert count == "1"
    assert allowed.split()[-1].isdigit()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_processors_stay(busybox_image: BusyboxImage, project: Project, platform: str) -> None:
    """A program that asks for all processors runs, on those that it has."""
    script = "nproc; /bin/busybox taskset ffffffff nproc"
    assert run_command(project, busybox_image(platform), script) == ["1", "1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="guests of an ordinary user share the user's id")
def test_host_ids_of_guests_of_root(busybox_image: BusyboxImage, project: Project) -> None:
    image = busybox_image("linux/amd64", Cmd=["/bin/sleep", "3607.25"])
    with project.start((*TASKS, "run-emulated", image, "--runner=sandbox", "--timeout=300")) as task:
        wait_until(lambda: _find_owners("sleep\x003607.25") or task.poll() is not None)
        owners = _find_owners("sleep\x003607.25")
        task.send_signal(signal.SIGINT)
        output = task.communicate()
    assert len(owners) == 1, output
    assert min(owners) >= 1 << 16


def test_host_handlers_are_unchanged(
    busybox_image: BusyboxImage, project: Project, unchanged: Unchanged
) -> None:
    before = census.handlers()
    with unchanged():
        run_command(project, busybox_image("linux/s390x"), "uname -m")
    assert census.handlers() == before


def test_environment_is_not_inherited(busybox_image: BusyboxImage, project: Project) -> None:
    project = project.with_env(BUILDKIT_TEST_VALUE="hunter2")
    lines = run_command(project, busybox_image("linux/amd64"), "env; cat /proc/1/environ 2>&1 || true")
    assert "hunter2" not in "\n".join(lines)
    names = {line.partition("=")[0] for line in lines if "=" in line}
    assert names == {"PATH", "HOSTNAME", "HOME", "PWD", "SHLVL"}


def _find_owners(command_line: str) -> set[int]:
    """Return the host uids of the processes with this command line (arguments separated by NUL)."""
    owners = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if entry.read_bytes().decode().rstrip("\0").endswith(command_line):
                owners.add(entry.parent.stat().st_uid)
    return owners
