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

# What the product does for its engine, with one small package.
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
def place(engine: Engine, project: Project) -> Path:
    if engine.kind != "private":
        pytest.skip("no private engine is made here")
    return project.folder.parent / "cache/tini"


def _argv(place: Path) -> list[str]:
    return [sys.executable, "-c", PROVISION, str(place)]


def test_what_was_cut_off_is_made_again(place: Path, project: Project, unchanged: Unchanged) -> None:
    place.parent.mkdir()
    with unchanged():
        child = project.start(_argv(place))
        while not any(place.parent.glob(".tini.*.staging/.apt0/lists/partial/*")):
            assert child.poll() is None, child.communicate()
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()
        assert not place.exists()
        assert any(place.parent.glob(".tini.*.staging"))
        done = project.command(*_argv(place))
        assert done.code == 0, done.stderr
    assert (place / "usr/bin/tini").exists()
    assert (place / ".complete").exists()


def test_the_locks_of_dpkg_and_apt_are_none_of_our_business(
    place: Path, project: Project, unchanged: Unchanged
) -> None:
    place.parent.mkdir()
    if os.geteuid() != 0 or not LOCKS[0].exists():
        pytest.skip("only root can hold dpkg's lock")
    with unchanged(), contextlib.ExitStack() as held:
        for lock in LOCKS:
            if lock.exists():  # apt makes its own at the first update
                fcntl.lockf(held.enter_context(lock.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = project.command(*_argv(place))
        assert done.code == 0, done.stderr
    assert (place / "usr/bin/tini").exists()
