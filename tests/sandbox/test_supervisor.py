"""The supervisor without the backend: how guests start and end, and what it refuses."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.sandbox.supervisor import KernelRefusal, SandboxRun, Supervisor
from tests.support.project import program
from tests.support.waiting import wait_until

ARM64 = Platform.parse("linux/arm64").machine


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as started:
        yield started


@pytest.fixture
def root(root: Path) -> Path:
    (root / "main").write_bytes(program("linux/amd64", 7))
    (root / "main").chmod(0o755)
    (root / "link").symlink_to("/proc/self/exe")
    return root


def guest(root: Path, *argv: str, working_dir: str = "/") -> SandboxRun:
    return SandboxRun(root=root, candidates=argv[:1], argv=argv, env={}, working_dir=working_dir)


def test_exit_status(supervisor: Supervisor, root: Path) -> None:
    assert supervisor.run(guest(root, "/main"), 10).exit_code == 7


@pytest.mark.parametrize(
    ("argv", "working_dir", "message"),
    [
        (("/nothing",), "/", "could not start /nothing: No such file or directory"),
        (("/" + "x" * 200_000,), "/", "could not start /xxx"),
        (("/main",), "/nowhere", "could not start /nowhere: No such file or directory"),
        (("/tmp",), "/", "could not start /tmp: Permission denied"),  # noqa: S108 - the guest's
        (("/proc/self/exe",), "/", "could not start /proc/self/exe: Permission denied"),
        (("/proc/1/exe",), "/", "could not start /proc/1/exe: Permission denied"),
        (("/link",), "/", "could not start /link: Permission denied"),
        (("/main",), "/proc/self/cwd", "could not start /proc/self/cwd: Too many levels of symbolic links"),
        (("/main",), "/proc/self/fd/1", "could not start /proc/self/fd/1: Too many levels of symbolic links"),
        (("/main",), "/proc", "could not start /proc: Permission denied"),
        (("/main",), "/dev/shm", "could not start /dev/shm: Permission denied"),  # noqa: S108 - likewise
    ],
    ids=[
        "missing", "endless", "working directory", "directory", "magic link", "init",
        "link to magic link", "magic working directory", "descriptor", "/proc", "/dev",
    ],
)  # fmt: skip
def test_start_failure(
    supervisor: Supervisor, root: Path, argv: tuple[str, ...], working_dir: str, message: str
) -> None:
    with pytest.raises(KernelRefusal) as caught:
        supervisor.run(guest(root, *argv, working_dir=working_dir), 10)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


def test_nul_in_argument(supervisor: Supervisor, root: Path) -> None:
    with pytest.raises(KernelRefusal, match=r"^could not start: .*embedded null"):
        supervisor.run(guest(root, "/main\0"), 10)


def test_mount_point_is_not_a_directory(supervisor: Supervisor, root: Path) -> None:
    (root / "dev").rmdir()
    (root / "dev").symlink_to("proc")
    with pytest.raises(KernelRefusal, match="mount on /dev, which is not a directory in the image"):
        supervisor.run(guest(root, "/main"), 10)


def test_preparation_failure(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(KernelRefusal, match=f"could not prepare the guest: {tmp_path}/dev: No such file"):
        supervisor.run(guest(tmp_path, "/main"), 10)


def test_handler_is_already_registered(supervisor: Supervisor, root: Path) -> None:
    supervisor.register(ARM64, root / "main")
    with pytest.raises(EmulatorError, match="could not register the emulator: File exists"):
        supervisor.register(ARM64, root / "main")


def test_closed_supervisor_starts_nothing(root: Path) -> None:
    supervisor = Supervisor()
    supervisor.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        supervisor.run(guest(root, "/main"), 10)


def test_guest_ends_with_supervisor(root: Path) -> None:
    # pause(2) in a loop: only a signal ends it.
    (root / "wait").write_bytes(program("linux/amd64", code="b8 22 00 00 00  0f 05  eb f7"))
    (root / "wait").chmod(0o755)
    supervisor = Supervisor()
    exit_codes: list[int] = []
    thread = threading.Thread(
        target=lambda: exit_codes.append(supervisor.run(guest(root, "/wait"), 300).exit_code)
    )
    thread.start()
    children = Path(f"/proc/{supervisor._process.pid}/task/{supervisor._process.pid}/children")
    wait_until(lambda: children.read_text(encoding="ascii"))
    supervisor.close()
    thread.join(120)
    assert exit_codes == [137]


# keyctl(KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", "tests", 0); exits with 0 if there is such a key.
SEARCH_KEY = (
    "b8 fa 00 00 00  bf 0a 00 00 00  be fd ff ff ff  48 8d 15 1b 00 00 00  4c 8d 15 19 00 00 00"
    "45 31 c0  0f 05  31 ff  85 c0  40 0f 98 c7  b8 3c 00 00 00  0f 05" + b"user\0tests\0".hex()
)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code for amd64")
def test_session_keyring_of_user(root: Path) -> None:
    search = program("linux/amd64", code=SEARCH_KEY)
    (root / "search").write_bytes(search)
    (root / "search").chmod(0o755)
    libc = ctypes.CDLL(None, use_errno=True)
    join_keyring, add_key, session = (250, 1, None), 248, ctypes.c_long(-3)
    if libc.syscall(*join_keyring) < 0:
        pytest.skip(f"this kernel or container allows no keyrings: {os.strerror(ctypes.get_errno())}")
    assert libc.syscall(add_key, b"user", b"tests", b"secret", 6, session) >= 0
    assert subprocess.run([root / "search"], check=False).returncode == 0
    with Supervisor() as started:
        assert started.run(guest(root, "/search"), 10).exit_code == 1
