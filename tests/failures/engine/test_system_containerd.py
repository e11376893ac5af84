"""A private engine beside a containerd of the system, as every Debian host with docker.io has it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.host.engine.sdk import connect_client
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.users import needs_root

SYSTEM_SOCKET = Path("/run/containerd/containerd.sock")
NAME = "beside-containerd"

pytestmark = needs_root


@pytest.fixture
def system_containerd() -> Iterator[socket.socket | None]:
    """A listener at the socket of the system's containerd; None if the machine has one."""
    if SYSTEM_SOCKET.exists():
        yield None
        return
    SYSTEM_SOCKET.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(SYSTEM_SOCKET))
        listener.listen()
        listener.setblocking(False)
        yield listener
    SYSTEM_SOCKET.unlink()
    with contextlib.suppress(OSError):
        SYSTEM_SOCKET.parent.rmdir()


def test_private_engine_has_its_own_containerd(
    engine: Engine, system_containerd: socket.socket | None
) -> None:
    del engine  # it provides the packages
    settings, run = load_settings(), SubprocessRunner(dry_run_output=sys.stderr)
    paths = PrivateEnginePaths(cache_folder(settings), NAME)
    try:
        private = ensure_private_engine(settings, run, lambda _: None, name=NAME)
        client = connect_client(private)
        assert client.info()["Containerd"]["Address"] == str(paths.containerd_socket)
        client.close()
        if system_containerd is not None:
            with pytest.raises(BlockingIOError):
                system_containerd.accept()
    finally:
        stop_private_engine(settings, run, lambda _: None, name=NAME)
    assert not paths.root.exists()
    assert not paths.runtime_dir.exists()


def use_private_engine(mode: str) -> dict[str, Any]:
    """Build and run an image in namespaces whose default paths are empty; return what is different then."""
    argv = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable]
    done = subprocess.run(
        [*argv, "-m", "tests.failures.engine.system_docker", mode],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    assert outcome["output"].startswith("tini version")
    return outcome


@pytest.mark.parametrize("mode", ["beside-docker", "alone"])
def test_private_engine_changes_nothing(engine: Engine, mode: str) -> None:
    if engine.kind != "private":
        pytest.skip("the engine is not a private one, so its packages may be missing")
    assert use_private_engine(mode)["changed"] == {}
