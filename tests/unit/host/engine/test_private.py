from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import private
from buildkit_tasks.host.engine.daemon import ClientTools
from buildkit_tasks.host.engine.private import (
    ensure_private_engine,
    stop_private_engine,
)
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.process import Process
from tests.support.scripted import Scripted


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateEnginePaths]:
    """Return the paths of an engine whose sockets are in a temporary directory with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(PrivateEnginePaths, "runtime_dir", Path(folder) / "run")
        yield PrivateEnginePaths(tmp_path / "cache")


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_folders_are_private(paths: PrivateEnginePaths) -> None:
    private._prepare_folders(paths)
    folders = (paths.root, paths.runtime_dir, paths.temporary_dir)
    assert [mode_of(folder) for folder in folders] == [0o700] * 3


def test_socket_is_private(paths: PrivateEnginePaths) -> None:
    paths.runtime_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.socket))
        listener.listen()
        paths.socket.chmod(0o666)
        private._wait_until_ready(paths)
        assert mode_of(paths.socket) == 0o600


def test_daemon_that_ended_is_not_waited_for(paths: PrivateEnginePaths) -> None:
    paths.root.mkdir(parents=True)
    paths.log_file.write_text("starting\nfailed to start daemon: no space\nbye\n")
    with pytest.raises(EngineError, match="did not start: failed to start daemon: no space"):
        private._wait_until_ready(paths)


def test_daemon_leaves_the_network_of_the_host_alone(paths: PrivateEnginePaths) -> None:
    paths.root.mkdir(parents=True)
    private._write_configuration(paths, "containerd")
    configuration = json.loads((paths.root / "daemon.json").read_text())
    expected = {"iptables": False, "ip6tables": False, "bridge": paths.bridge, "hosts": [paths.endpoint]}
    assert configuration.items() >= expected.items()


def start_shell(program: Path, argument: Path) -> subprocess.Popen[bytes]:
    """Start a shell that waits for the end of its input."""
    return subprocess.Popen([program, "-c", "read line", str(argument)], stdin=subprocess.PIPE)


def test_only_own_programs_are_orphans(paths: PrivateEnginePaths) -> None:
    shell = Path(shutil.which("sh") or "").resolve()
    own_shell = paths.prefix / "usr/bin/sh"
    own_shell.parent.mkdir(parents=True)
    shutil.copy(shell, own_shell)
    with start_shell(own_shell, paths.runtime_dir) as orphan, start_shell(shell, paths.runtime_dir) as reader:
        try:
            orphans = private._find_orphans(paths)
            assert orphans == [Process.from_pid(orphan.pid)]
        finally:
            orphan.communicate()
            reader.communicate()


def test_stop_removes_state_unless_it_is_kept(paths: PrivateEnginePaths) -> None:
    settings = Settings(cache=str(paths.cache))
    for folder in (paths.data_root, paths.runtime_dir):
        folder.mkdir(parents=True)
    paths.process_file.write_text("1-1")  # a pid that was reused
    assert not stop_private_engine(settings, Scripted(), print, keep_state=True)
    assert paths.data_root.exists()
    assert not paths.process_file.exists()
    assert not paths.runtime_dir.exists()
    assert not stop_private_engine(settings, Scripted(), print)
    assert not paths.root.exists()


def test_dry_run_stops_nothing(paths: PrivateEnginePaths) -> None:
    paths.root.mkdir(parents=True)
    messages: list[str] = []
    settings = Settings(cache=str(paths.cache))
    with start_shell(Path("/bin/sh"), paths.root) as daemon:
        paths.process_file.write_text(str(Process.from_pid(daemon.pid)))
        assert stop_private_engine(settings, Scripted(dry_run=True), messages.append)
        assert daemon.poll() is None
        daemon.communicate()
    assert messages == [f"would stop process {daemon.pid} and remove {paths.root}"]
    assert paths.process_file.exists()


def test_only_root_starts_an_engine(paths: PrivateEnginePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = ClientTools(docker=("docker",), buildx=("docker", "buildx"))
    monkeypatch.setattr(private, "ensure_tools", lambda *_: tools)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(EngineError, match="only root can start a private one"):
        ensure_private_engine(Settings(cache=str(paths.cache)), Scripted(), print)
