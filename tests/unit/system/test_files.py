from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buildkit_tasks.system.files import (
    build_atomically,
    expand_home,
    explain_untrusted,
    explain_unwritable,
    is_complete,
    replace_directory,
    replace_file,
    temporary_path,
    write_atomically,
)
from tests.support.users import NOBODY, call_as_nobody, needs_root

DEAD_PID = 4194305  # above Linux's highest


def list_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Files


@pytest.mark.parametrize("data", ["t\u00e4xt\n", b"\xff\x00"])
def test_write_replaces_file(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, "old")
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list_names(path.parent) == ["file"]


def test_write_mode(tmp_path: Path) -> None:
    old_umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "plain", "")
        write_atomically(tmp_path / "secret", "", mode=0o600)
        write_atomically(tmp_path / "program", b"", mode=0o755)
    finally:
        os.umask(old_umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"plain": 0o640, "secret": 0o600, "program": 0o755}


def test_data_is_flushed_before_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushes = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda fd: flushes.append((os.fstat(fd).st_size, path.exists())))
    write_atomically(path, "data")
    assert flushes == [(4, False)]


def test_failed_write_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def fail() -> None:
        with replace_file(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list_names(tmp_path) == ["file"]


def test_concurrent_writers(tmp_path: Path) -> None:
    path, barrier = tmp_path / "file", threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait(120)
        for _ in range(20):
            write_atomically(path, str(number) * 1000)
            assert len(set(path.read_text(encoding="utf-8"))) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert list_names(tmp_path) == ["file"]


def test_temporary_name(tmp_path: Path) -> None:
    assert temporary_path(tmp_path / "x.tar") == tmp_path / f".x.tar.{os.getpid()}.partial"


def test_temporary_name_of_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, "whole")
    assert path.read_text(encoding="utf-8") == "whole"


def test_stale_partials_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "[x].tar"
    stale = tmp_path / f".[x].tar.{DEAD_PID}.partial"
    others = [
        path,
        temporary_path(path),
        tmp_path / ".[x].tar.word.partial",
        tmp_path / f".y.tar.{DEAD_PID}.partial",
        tmp_path / f"[x].tar.{DEAD_PID}.partial",
    ]
    for each in (stale, *others):
        each.touch()
    with replace_file(path):
        assert list_names(tmp_path) == sorted(each.name for each in others)


# Directories


def test_build_replaces_incomplete(tmp_path: Path) -> None:
    path, staging = tmp_path / "[x]", tmp_path / ".[x].cutoff.staging"
    for directory in (path, staging):
        directory.mkdir()
        (directory / "half").touch()
    build_atomically(path, lambda directory: (directory / "whole").touch())
    assert list_names(path) == [".complete", "whole"]
    assert is_complete(path)
    assert not staging.exists()


def test_directory_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "x"
    modes: list[int] = []

    def fill(directory: Path) -> None:
        assert not path.exists()
        modes.append(directory.stat().st_mode & 0o777)

    build_atomically(path, fill)
    assert modes == [0o700]


def test_interrupted_build_is_removed(tmp_path: Path) -> None:
    def fill(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_atomically(tmp_path / "x", fill)
    assert list_names(tmp_path) == [".x.lock"]


def test_build_dry_run(tmp_path: Path) -> None:
    filled: list[Path] = []
    assert build_atomically(tmp_path / "x", filled.append, dry_run=True) == tmp_path / "x"
    assert (filled, list_names(tmp_path)) == ([tmp_path / "x"], [])


def test_threads_build_once(tmp_path: Path) -> None:
    path, barrier, filled = tmp_path / "x", threading.Barrier(16), []

    def fill(directory: Path) -> None:
        filled.append(directory)
        (directory / "data").touch()

    def build(_: int) -> bool:
        barrier.wait(120)
        return (build_atomically(path, fill) / "data").exists()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(build, range(16)))
    assert len(filled) == 1


BUILD = """
import sys, time
from pathlib import Path
from buildkit_tasks.system.files import build_atomically
path = Path(sys.argv[1])
def fill(directory):
    with path.with_name("log").open("a") as log:
        log.write("x")
    time.sleep(0.3)
build_atomically(path, fill)
"""


def test_processes_build_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", BUILD, str(tmp_path / "x")]
    children = [subprocess.Popen(argv) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "x"


def test_replace_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with replace_directory(tmp_path / "x") as staging:
        (staging / "file").touch()
    assert list_names(tmp_path / "x") == ["file"]
    assert list_names(tmp_path) == ["x"]


def test_full_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x/kept").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"), replace_directory(tmp_path / "x") as staging:
        (staging / "file").touch()
    assert list_names(tmp_path / "x") == ["kept"]
    assert list_names(tmp_path) == ["x"]


def test_expand_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(expand_home(path)) for path in ("~", "~/x", "/x/~", "y")] == [
        "/home/me", "/home/me/x", "/x/~", "y",
    ]  # fmt: skip
    assert expand_home("~no-such-user/x") == Path("/nonexistent/x")


def test_writable_directory(tmp_path: Path) -> None:
    assert explain_unwritable(tmp_path) == ""
    assert explain_unwritable(tmp_path / "a/b") == ""
    (tmp_path / "file").touch()
    assert explain_unwritable(tmp_path / "file") == f"{tmp_path}/file is not a directory"
    assert explain_unwritable(tmp_path / "file/a") == "Not a directory"
    assert list_names(tmp_path) == ["file"]


@needs_root
def test_unwritable_directory(tmp_path: Path) -> None:
    """Pytest's directory is closed to other users; ``/`` can be read, but not written."""
    reasons = [call_as_nobody(lambda path=path: explain_unwritable(path)) for path in (  # type: ignore[misc]
        tmp_path / "a", Path("/nonexistent/a"), Path("/root"),
    )]  # fmt: skip
    assert reasons == ["Permission denied", "permission denied in /", "permission denied in /root"]


@needs_root
def test_read_only_file_system(tmp_path: Path) -> None:
    script = f"""\
mount -t tmpfs -o ro tmpfs {tmp_path}
exec {sys.executable} -c "from pathlib import Path; from buildkit_tasks.system import files
print(files.explain_unwritable(Path('{tmp_path}/a')))"
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"read-only file system in {tmp_path}\n"


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o500])
def test_trusted_directory(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    assert explain_untrusted(folder) == ""
    assert explain_untrusted(folder / "new") == ""


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o720, 0o1777])
def test_directory_that_others_write(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    (tmp_path / "link").symlink_to(folder)
    assert explain_untrusted(folder) == "other users can write to it"
    assert explain_untrusted(tmp_path / "link") == "other users can write to it"


@needs_root
def test_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    assert explain_untrusted(folder) == "it belongs to nobody"
    os.chown(folder, 123456, 123456)
    assert explain_untrusted(folder) == "it belongs to user 123456"
    monkeypatch.setenv("SUDO_UID", "123456")
    assert explain_untrusted(folder) == ""


@needs_root
def test_directory_of_root() -> None:
    """An ordinary user uses what root has prepared; SUDO_UID says nothing then."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        assert call_as_nobody(lambda: explain_untrusted(folder)) == ""
        os.chown(folder, 123456, 123456)

        def explain() -> str:
            os.environ["SUDO_UID"] = "123456"
            return explain_untrusted(folder)

        assert call_as_nobody(explain) == "it belongs to user 123456"
