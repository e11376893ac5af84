from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.project import Project
from tests.support.waiting import wait_until

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


def _has_lists(folder: Path) -> bool:
    """Return whether apt downloads lists of packages, to ``partial/``, or has done so."""
    patterns = ("partial/*", "*_*")
    return any(list(folder.glob(f".tini.*.staging/.apt0/lists/{pattern}")) for pattern in patterns)


def test_install_after_kill(prefix: Path, project: Project, unchanged: Unchanged) -> None:
    prefix.parent.mkdir()
    with unchanged():
        child = project.start(_install_argv(prefix))
        wait_until(lambda: _has_lists(prefix.parent) or child.poll() is not None)
        child.kill()
        _, stderr = child.communicate()
        assert child.returncode == -signal.SIGKILL, stderr
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
