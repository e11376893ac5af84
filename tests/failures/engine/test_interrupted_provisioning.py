from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.project import Project

# Install one small package as the private engine's packages are.
PROVISION = """\
import sys
from pathlib import Path
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
names = [PackageSet(names=("tini",), suite="host", with_dependencies=True)]
install_packages(Path(sys.argv[1]), names, SubprocessRunner(dry_run_output=sys.stderr), lambda _: None)
"""

LOCKS = [
    Path("/var/lib/dpkg/lock"),
    Path("/var/lib/dpkg/lock-frontend"),
    Path("/var/lib/apt/lists/lock"),
    Path("/var/cache/apt/archives/lock"),
]


@pytest.fixture
def prefix(engine: Engine, project: Project) -> Path:
    if engine.kind != "private":
        pytest.skip("the engine is not a private one")
    return project.folder.parent / "cache/tini"


def _install_argv(prefix: Path) -> list[str]:
    return [sys.executable, "-c", PROVISION, str(prefix)]


def test_install_after_kill(prefix: Path, project: Project, unchanged: Unchanged) -> None:
    prefix.parent.mkdir()
    with unchanged():
        child = project.start(_install_argv(prefix))
        while not any(prefix.parent.glob(".tini.*.staging/.apt0/lists/partial/*")):
            assert child.poll() is None, child.communicate()
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()
        assert not prefix.exists()
        assert any(prefix.parent.glob(".tini.*.staging"))
        done = project.command(*_install_argv(prefix))
        assert done.code == 0, done.stderr
    assert (prefix / "usr/bin/tini").exists()
    assert (prefix / ".complete").exists()


def test_install_ignores_apt_locks(prefix: Path, project: Project, unchanged: Unchanged) -> None:
    prefix.parent.mkdir()
    if os.geteuid() != 0 or not LOCKS[0].exists():
        pytest.skip("only root can hold dpkg's lock")
    with unchanged(), contextlib.ExitStack() as stack:
        for lock in LOCKS:
            if lock.exists():  # apt creates its locks at the first update
                fcntl.lockf(stack.enter_context(lock.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = project.command(*_install_argv(prefix))
        assert done.code == 0, done.stderr
    assert (prefix / "usr/bin/tini").exists()
