"""What a guest can and cannot do, asked of the guest itself and of the host beside it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from tests.conftest import Unchanged
from tests.sandbox.conftest import Busy, says
from tests.support import census
from tests.support.project import TASKS, Project

PLATFORMS = ("linux/amd64", "linux/arm64")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_guest_has_no_capability_and_gains_none(busy: Busy, project: Project, platform: str) -> None:
    lines = says(project, busy(platform), "grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
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
def test_a_guest_is_refused(busy: Busy, project: Project, user: str, forbidden: str) -> None:
    said = says(project, busy("linux/amd64", User=user), f"({forbidden}) 2>&1 && echo done || echo refused")
    assert said[-1] == "refused", said


def test_a_guest_sees_itself_and_its_init_alone(busy: Busy, project: Project) -> None:
    lines = says(project, busy("linux/amd64"), "ls -d /proc/[0-9]*; ls /dev; hostname")
    assert [line for line in lines if line.startswith("/proc/")] == ["/proc/1", "/proc/2"]
    devices = {"fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert set(lines[2:-1]) == devices
    assert lines[-1] == "guest"


def test_nothing_of_the_host_is_mounted_but_the_image_and_devices(busy: Busy, project: Project) -> None:
    lines = says(project, busy("linux/amd64"), "cat /proc/self/mounts")
    places = {line.split()[1]: line.split()[3].split(",") for line in lines}
    devices = {"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}
    assert set(places) == {"/", "/dev", "/dev/shm", "/tmp", "/proc", *devices}  # noqa: S108 - the guest's
    assert {"ro", "nosuid", "nodev"} <= set(places["/"])
    assert {"nosuid", "nodev", "noexec"} <= set(places["/proc"])


def test_a_guest_can_write_to_its_own_tmp_and_only_so_much(busy: Busy, project: Project) -> None:
    fill = "dd if=/dev/zero of=/tmp/y bs=1M count=200 2>/dev/null || stat -c %s /tmp/y"
    script = f"echo hi > /tmp/x && cat /tmp/x; {fill}"
    greeting, size = says(project, busy("linux/amd64", User="app"), script)
    assert greeting == "hi"
    assert 60 << 20 < int(size) <= 64 << 20


def test_a_guest_can_talk_to_itself_and_to_nobody_else(busy: Busy, project: Project) -> None:
    script = "cat /proc/net/dev | wc -l; grep -c 127.0.0.1 /proc/net/fib_trie; cat /proc/net/route | wc -l"
    lines = says(project, busy("linux/amd64"), script)
    assert lines[0] == "3"
    assert int(lines[1]) > 0
    assert lines[2] == "1"


def test_programs_of_a_guest_are_not_the_hosts(busy: Busy, project: Project) -> None:
    """Its user is nobody whom the host knows, and runs on one processor."""
    script = "id -u; cat /proc/self/uid_map; nproc; grep Cpus_allowed_list /proc/self/status"
    uid, ids, count, allowed = says(project, busy("linux/amd64"), script)
    inside, outside, _ = map(int, ids.split())
    assert (uid, inside) == ("0", 0)
    assert outside == 0  # as its parent, the sandbox's own namespace, has it
    assert count == "1"
    assert allowed.split()[-1].isdigit()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's guests have no other id than the user's")
def test_of_root_the_guests_are_nobody_on_the_host(busy: Busy, project: Project) -> None:
    image = busy("linux/amd64", Cmd=["/bin/sleep", "7.25"])
    with project.start((*TASKS, "run-emulated", image, "--runner=sandbox")) as task:
        owner = _owner_of("sleep\x007.25")
        task.communicate()
    assert owner >= 1 << 16


def test_the_hosts_handlers_stay_byte_for_byte(busy: Busy, project: Project, unchanged: Unchanged) -> None:
    before = census.handlers()
    with unchanged():
        says(project, busy("linux/s390x"), "uname -m")
    assert census.handlers() == before


def test_secrets_of_our_environment_stay_with_us(busy: Busy, project: Project) -> None:
    ours = project.with_env(A_THING_OF_OURS="hunter2")
    lines = says(ours, busy("linux/amd64"), "env; cat /proc/1/environ 2>&1 || true")
    assert "hunter2" not in "\n".join(lines)
    names = {line.partition("=")[0] for line in lines if "=" in line}
    assert names == {"PATH", "HOSTNAME", "HOME", "PWD", "SHLVL"}


def _owner_of(words: str) -> int:
    """The host's id of the user whose process has these words in its command line."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if entry.read_bytes().decode().rstrip("\0").endswith(words):
                    return entry.parent.stat().st_uid
        time.sleep(0.02)
    raise AssertionError(f"no process has {words!r} in its command line")
