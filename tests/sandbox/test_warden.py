"""The warden asked directly: what it refuses is told, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.sandbox.supervisor import KernelRefusal, SandboxRun, Supervisor
from tests.support.project import program

ARM64 = Platform.parse("linux/arm64").machine


@pytest.fixture
def warden() -> Iterator[Supervisor]:
    with Supervisor() as one:
        yield one


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("dev", "proc", "tmp"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root/main").write_bytes(program("linux/amd64", 7))
    (tmp_path / "root/main").chmod(0o755)
    return tmp_path / "root"


def guest(root: Path, *words: str, **more: str) -> SandboxRun:
    return SandboxRun(root=root, candidates=words[:1], argv=words, env={}, **more)  # type: ignore[arg-type]


def test_a_guest_ends_with_its_own_status(warden: Supervisor, root: Path) -> None:
    assert warden.run(guest(root, "/main"), 10).exit_code == 7


@pytest.mark.parametrize(
    ("words", "folder", "told"),
    [
        (("/nothing",), "/", "could not start /nothing: No such file or directory"),
        (("/" + "x" * 200_000,), "/", "could not start /xxx"),
        (("/main",), "/nowhere", "could not start /nowhere: No such file or directory"),
        (("/main\0",), "/", "could not start: embedded null byte"),
        (("/tmp",), "/", "could not start /tmp: Permission denied"),  # noqa: S108 - the guest's
    ],
    ids=["missing", "endless", "folder", "NUL", "no file"],
)
def test_what_cannot_be_started_is_told_in_few_words(
    warden: Supervisor, root: Path, words: tuple[str, ...], folder: str, told: str
) -> None:
    with pytest.raises(KernelRefusal) as caught:
        warden.run(guest(root, *words, folder=folder), 10)
    assert str(caught.value).startswith(told)
    assert len(str(caught.value)) < 400


def test_a_root_without_its_folders_is_told(warden: Supervisor, root: Path) -> None:
    (root / "dev").rmdir()
    (root / "dev").symlink_to("proc")
    with pytest.raises(KernelRefusal, match="mount on /dev, which is no folder in the image"):
        warden.run(guest(root, "/main"), 10)


def test_a_handler_that_is_there_already_is_told(warden: Supervisor, root: Path) -> None:
    warden.register(ARM64, root / "main")
    with pytest.raises(EmulatorError, match="could not register the emulator: File exists"):
        warden.register(ARM64, root / "main")


def test_after_its_end_nothing_is_started_and_nobody_waits(root: Path) -> None:
    warden = Supervisor()
    warden.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        warden.run(guest(root, "/main"), 10)


def test_guests_end_with_their_warden(root: Path) -> None:
    # pause(2), and again: nothing but a signal ends it.
    (root / "wait").write_bytes(program("linux/amd64", code="b8 22 00 00 00  0f 05  eb f7"))
    (root / "wait").chmod(0o755)
    warden = Supervisor()
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(warden.run(guest(root, "/wait"), 60).exit_code))
    thread.start()
    pid, deadline = warden._process.pid, time.monotonic() + 10
    while not Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii"):
        assert time.monotonic() < deadline
    warden.close()
    thread.join(10)
    assert codes == [137]
