"""Run each pytest process in a home directory of its own, and remove what was started in it.

With its own home directory a process has its own engine, unpacked images, handlers file and buildx store,
which neither another worker of pytest-xdist nor a user of the package on this machine changes. Downloads and
compiled programs are those of the user's cache: they are only added to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import Settings, cache_folder, load_settings
from buildkit_tasks.host.emulation.binfmt import HandlerTable
from buildkit_tasks.host.engine.private import stop_private_engine
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.process import Process
from tests.support import census
from tests.support.project import TASK_SERVER

_HOMES_KEY = "buildkit_tasks_homes"
_SHARED = ("bases", "debian", "emulators", "go", "hello", "planted-faults")  # in the cache directory
# Settings, caches and toolchains of other programs, by the variables that replace their default.
_USER_DIRECTORIES = {
    "CARGO_HOME": ".cargo",
    "PIP_CACHE_DIR": ".cache/pip",
    "RUSTUP_HOME": ".rustup",
    "XDG_CONFIG_HOME": ".config",
}
_STOP_SECONDS = 20.0
_HOMES: pytest.StashKey[Path] = pytest.StashKey()
_HANDLERS: pytest.StashKey[tuple[tuple[str, bytes], ...]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Move this process to its own home directory, and let SIGTERM end it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[_HANDLERS] = census.handlers()
    worker_input = getattr(config, "workerinput", None)
    # Not below pytest's directory for temporary files, which a later session may clean up.
    homes = worker_input[_HOMES_KEY] if worker_input else tempfile.mkdtemp(prefix="buildkit-tests-")
    config.stash[_HOMES] = Path(homes)
    _enter_home(Path(homes) / (worker_input["workerid"] if worker_input else "main"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where the home directories are."""
    node.workerinput[_HOMES_KEY] = str(node.config.stash[_HOMES])


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Clean up once all workers have ended, also after Ctrl-C, and fail if handlers have changed."""
    try:
        yield
    finally:
        TASK_SERVER.close()
        if not hasattr(session.config, "workerinput"):
            _finish(session)


def _finish(session: pytest.Session) -> None:
    homes = session.config.stash[_HOMES]
    for home in filter(Path.is_dir, homes.iterdir()):
        _clean_up(home)
    shutil.rmtree(homes, ignore_errors=True)
    if census.handlers() != session.config.stash[_HANDLERS]:
        print("the tests have changed the handlers of binfmt_misc", file=sys.stderr)  # noqa: T201
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def shared_directory(pytestconfig: pytest.Config) -> Path:
    """A directory that all workers of this session have in common."""
    return pytestconfig.stash[_HOMES] / "shared"


HandlersLock = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def handlers_lock(pytestconfig: pytest.Config) -> HandlersLock:
    """``with handlers_lock():`` no other worker registers handlers; ``exclusive=True`` to register some."""
    path = pytestconfig.stash[_HOMES] / "handlers.lock"

    @contextlib.contextmanager
    def lock(*, exclusive: bool = False) -> Iterator[None]:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield

    return lock


def _enter_home(home: Path) -> None:
    """Set HOME for this process; other programs keep the user's settings."""
    user_home, user_cache = Path.home(), cache_folder(load_settings())
    cache = home / ".cache/buildkit-tasks"
    cache.mkdir(parents=True)
    for name in _SHARED:
        (user_cache / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to((user_cache / name).resolve())  # a worker has the home of its controller
    for variable, path in _USER_DIRECTORIES.items():
        os.environ.setdefault(variable, str(user_home / path))
    for variable in ("XDG_CACHE_HOME", "INVOKE_BUILDKIT_CACHE"):
        os.environ.pop(variable, None)
    os.environ["HOME"] = str(home)


def _clean_up(home: Path) -> None:
    """End the started processes and engines, remove the registered handlers, and delete the directory."""
    cache, commands = home / ".cache/buildkit-tasks", SubprocessRunner()
    # Tasks whose worker was interrupted may still be starting an engine.
    for process in _find_tasks(home):
        process.terminate(_STOP_SECONDS)
    for process_file in cache.glob("*/process"):
        stop_private_engine(Settings(cache=str(cache)), commands, _notify, name=process_file.parent.name)
    HandlerTable(commands=commands, state_path=cache / "binfmt.json").remove_registered()
    shutil.rmtree(home, ignore_errors=True)


def _find_tasks(home: Path) -> list[Process]:
    """Return the Python processes with this home directory, except this one."""
    variable, tasks = b"HOME=" + os.fsencode(home), []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_own = int(path.name) == os.getpid()
            if not is_own and variable in (path / "environ").read_bytes().split(b"\0"):
                tasks.append(Process.from_pid(int(path.name)))
    return [task for task in tasks if task.executable.name.startswith("python")]


def _notify(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it if the test fails
